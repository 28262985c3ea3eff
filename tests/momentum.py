"""A model whose gradients do not depend on its parameters, trained with momentum: only the order of updates matters."""

from __future__ import annotations

import os
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from shoal import trainer

SAMPLES, WIDTH = 240, 40


def pushes() -> torch.Tensor:
    """Return the values that each sample pushes, of shape [SAMPLES, WIDTH]."""
    return torch.randn(SAMPLES, WIDTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


class Numbers(Dataset):
    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return index


class Weights(nn.Module):
    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(WIDTH, dtype=torch.float64))


def main():
    job = trainer.join(epochs=4, seed=3)
    each = pushes()
    model = Weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model, optimizer, loader = job.prepare(model, optimizer, DataLoader(Numbers(), batch_size=4, shuffle=True))
    for _ in job.epochs():
        for samples in loader:
            loss = (model.values * each[samples].sum(dim=0)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            time.sleep(float(os.environ.get("COUNT_PAUSE", "0")))


if __name__ == "__main__":
    main()
