"""A training script whose compute is a sleep; it writes the time of each step into its own file.

The sleep precedes the step, as forward and backward passes do; after the step it would hide the exchange with the servers.

A time stamp is taken when the loop gets a batch: every server has acknowledged the previous batch then. The clock is the
machine's monotonic clock, which all processes share. The first five stamps are those of joining, see ``STAMPS``.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from shoal import trainer

STAMPS = ("join entered", "join returned", "dataset made", "optimizer made", "prepared")
SAMPLES = 64_000
BATCH = 10


def main() -> None:
    """Train until terminated."""
    name = f"steps-{os.environ.get('SHOAL_INDEX', '0')}-{os.getpid()}"
    descriptor = os.open(Path(os.environ["BENCH_STEPS"]) / name, os.O_WRONLY | os.O_CREAT, 0o600)

    def stamp() -> None:
        os.write(descriptor, struct.pack("d", time.monotonic()))

    pause = float(os.environ["BENCH_PAUSE"])
    task_batches = int(os.environ["BENCH_TASK"])
    stamp()
    job = trainer.join(epochs=100_000, seed=1)
    stamp()
    data = TensorDataset(torch.zeros(SAMPLES, 8), torch.zeros(SAMPLES, 1))
    stamp()
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    stamp()
    loader = DataLoader(data, batch_size=BATCH, shuffle=True)
    model, optimizer, loader = job.prepare(model, optimizer, loader, task_batches=task_batches)
    stamp()
    for _ in job.epochs():
        for x, y in loader:
            stamp()
            time.sleep(pause)
            loss = nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
