"""Parts that the scripts of these tests share: a model that counts samples, its data, and the usual beginning.

With a learning rate of 1 each sample adds exactly 1 to its own entry, so at the end every entry is the number of epochs.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from shoal import trainer

__all__ = ["BATCH", "SAMPLES", "Counter", "Numbers", "Pair", "begin", "data", "sgd", "train"]

SAMPLES, BATCH = 64, 4


class Numbers(Dataset):
    """Sample i is the number i."""

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return torch.tensor(index)


class Counter(nn.Module):
    """A model with one entry per sample; training on a sample adds the learning rate to its entry."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(SAMPLES))

    def forward(self, i):
        return -self.w[i].sum()


class Pair(nn.Module):
    """Two counters, used one after the other like a network's body and head."""

    def __init__(self):
        super().__init__()
        self.body, self.head = Counter(), Counter()

    def forward(self, i):
        return self.body(i) + self.head(i)


def sgd(model, **options):
    """Make the optimizer with which each sample adds 1."""
    return torch.optim.SGD(model.parameters(), **{"lr": 1.0, **options})


def data(dataset=None, **options):
    """Make the script's DataLoader."""
    options.setdefault("batch_size", BATCH)
    if "sampler" not in options:
        options.setdefault("shuffle", True)
    return DataLoader(Numbers() if dataset is None else dataset, **options)


def begin(make=Counter, *, optimizer=sgd, loader=None, epochs=2, seed=7, **options):
    """Join the job, make the model and its optimizer, and call prepare."""
    job = trainer.join(epochs=epochs, seed=seed)
    model = make()
    return job, *job.prepare(model, optimizer(model), data() if loader is None else loader, **options)


def train(model, optimizer, i):
    """Train on one batch; return its loss."""
    loss = model(i)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss
