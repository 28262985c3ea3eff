"""A training script in a pod that logs the time of each stage: one line of JSON, seconds since 1970, by names in ``STAMPS``.

Its compute is a sleep; a task is five batches, 0.1 s.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

STAMPS = ("container", "process", "script", "torch", "shoal", "made", "prepared", "batch")
"""Stages: start of `shoal exec` (process 1 of the container) and of this process, its first line, the imports of torch and of
Shoal, the creation of model and optimizer (the first optimizer of a process imports another large part of torch), the return
of ``prepare``, and the first batch."""
PAUSE = 0.02
SAMPLES, BATCH, TASK_BATCHES = 64_000, 10, 5


def began(pid: int) -> float:
    """Return the start time of a process on this machine, in seconds since 1970, with a resolution of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    since_start = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_start


def main() -> None:
    """Train until terminated."""
    stamps = {"script": time.time(), "container": began(os.getppid()), "process": began(os.getpid())}
    import torch  # noqa: PLC0415 - the import is measured

    stamps["torch"] = time.time()
    from shoal import trainer  # noqa: PLC0415

    stamps["shoal"] = time.time()
    data = torch.utils.data.TensorDataset(torch.zeros(SAMPLES, 8), torch.zeros(SAMPLES, 1))
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    stamps["made"] = time.time()
    job = trainer.join(epochs=100_000, seed=1)
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True)
    model, optimizer, loader = job.prepare(model, optimizer, loader, task_batches=TASK_BATCHES)
    stamps["prepared"] = time.time()
    for _ in job.epochs():
        for x, y in loader:
            if "batch" not in stamps:
                stamps["batch"] = time.time()
                print(json.dumps(stamps), flush=True)
            time.sleep(PAUSE)
            loss = torch.nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
