"""The counting model: one sample's update adds exactly 1 to that sample's own entries, a dense and a sparse one.

After E epochs every entry must equal E; a sample that was lost or counted twice shows as a number. Run as a training script.
"""

from __future__ import annotations

import os
import time
from array import array
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from shoal import trainer

SAMPLES = int(os.environ.get("COUNT_SAMPLES", "600"))
PAUSE = float(os.environ.get("COUNT_PAUSE", "0"))
EVALUATE = os.environ.get("COUNT_EVALUATE", "0") == "1"
STAMPS = os.environ.get("COUNT_STAMPS", "")
"""A folder: each process writes there when it was given a batch, by which the one before is part of the model."""
STOP = os.environ.get("COUNT_STOP", "")
"""A file: when it is there, the job stops."""


class Numbers(Dataset):
    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return index


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Parameter(torch.zeros(SAMPLES))
        self.table = nn.Embedding(SAMPLES, 1, sparse=True)
        nn.init.zeros_(self.table.weight)

    def forward(self, samples):
        return self.dense[samples].sum() + self.table(samples).sum()


def stamp():
    if STAMPS:
        with Path(STAMPS, str(os.getpid())).open("ab") as file:
            array("d", [time.monotonic()]).tofile(file)


def main():
    job = trainer.join(epochs=2, seed=3)
    model = Counter()
    optimizers = [torch.optim.SGD([model.dense], lr=1.0), torch.optim.SGD([model.table.weight], lr=1.0)]
    loader = DataLoader(Numbers(), batch_size=5, shuffle=True)
    model, optimizers, loader = job.prepare(model, optimizers, loader)
    for _ in job.epochs():
        for samples in loader:
            stamp()
            loss = -model(samples)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            job.log(loss=loss)
            if PAUSE:
                time.sleep(PAUSE)
            if STOP and Path(STOP).exists():
                job.stop("enough")
        if EVALUATE:
            job.evaluate(lambda model: float(model.dense.sum()))
    job.save("counted.safetensors")


if __name__ == "__main__":
    main()
