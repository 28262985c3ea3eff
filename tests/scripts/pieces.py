"""What the scripts of these tests have in common: a model that counts, its samples, and the usual beginning.

With a learning rate of 1 each sample adds exactly 1 to its own entry, so in the end every entry is the number of epochs.
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
    """An entry for each sample."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(SAMPLES))

    def forward(self, i):
        return -self.w[i].sum()


class Pair(nn.Module):
    """Two counters, one behind the other as a network's body and head are."""

    def __init__(self):
        super().__init__()
        self.body, self.head = Counter(), Counter()

    def forward(self, i):
        return self.body(i) + self.head(i)


def sgd(model, **options):
    """The optimizer with which a sample counts 1."""
    return torch.optim.SGD(model.parameters(), **{"lr": 1.0, **options})


def data(dataset=None, **options):
    """The script's DataLoader."""
    options.setdefault("batch_size", BATCH)
    if "sampler" not in options:
        options.setdefault("shuffle", True)
    return DataLoader(Numbers() if dataset is None else dataset, **options)


def begin(make=Counter, *, optimizer=sgd, loader=None, epochs=2, seed=7, **options):
    """Join, make the model and its optimizer, prepare."""
    job = trainer.join(epochs=epochs, seed=seed)
    model = make()
    return job, *job.prepare(model, optimizer(model), data() if loader is None else loader, **options)


def train(model, optimizer, i):
    """What is done with a batch."""
    loss = model(i)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss
