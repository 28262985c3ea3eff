"""The counting model, at a pace from a file: seconds per batch, then (optionally) MiB of memory to allocate.

It runs as a training script in a pod. Without the file, or when it is empty, it does not wait.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from shoal import trainer
from tests.counting import Counter, Numbers

CONTROL = Path(os.environ.get("PACED_CONTROL", "/nowhere"))
"""A folder of the test's."""


def wait() -> None:
    try:
        time.sleep(float((CONTROL / "pace").read_text()))
    except FileNotFoundError:
        return


def eat(index: str) -> None:
    """Allocate as much memory as the test has set."""
    try:
        size = int((CONTROL / f"eat-{index}").read_text())
    except FileNotFoundError:
        return
    eaten = bytearray(size)
    eaten[::4096] = b"1" * len(eaten[::4096])


def main() -> None:
    index = os.environ["SHOAL_INDEX"]
    print(f"trainer {index} begins", flush=True)
    job = trainer.join(epochs=2, seed=3)
    model = Counter()
    optimizers = [torch.optim.SGD([model.dense], lr=1.0), torch.optim.SGD([model.table.weight], lr=1.0)]
    numbers = DataLoader(Numbers(), batch_size=5, shuffle=True)
    model, optimizers, loader = job.prepare(model, optimizers, numbers, task_batches=5)
    for epoch in job.epochs():
        print(f"epoch {epoch}", flush=True)
        for samples in loader:
            loss = -model(samples)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            job.log(loss=loss)
            eat(index)
            wait()


if __name__ == "__main__":
    main()
