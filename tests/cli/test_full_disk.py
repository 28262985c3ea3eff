"""A full disk is reported at once, no sample is lost, and the job continues when space is free again."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SCRIPT = """
import time
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from shoal import trainer

job = trainer.join()
data = TensorDataset(torch.arange(2400.0).reshape(-1, 1) / 2400, torch.ones(2400, 1))
model = nn.Sequential(nn.Linear(1, 4000), nn.Linear(4000, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.00001)
model, optimizer, loader = job.prepare(model, optimizer, DataLoader(data, batch_size=4, shuffle=True))
for epoch in job.epochs():
    for x, y in loader:
        loss = ((model(x) - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        time.sleep(0.01)
job.save("model.safetensors")
"""

MANIFEST = """
apiVersion: shoal.dev/v1alpha1
kind: TrainingJob
metadata: {name: full}
spec:
  command: [python, train.py]
  epochs: 2
  parameterServer: {replicas: 1}
  checkpoint: {interval: 500ms}
"""

# Mounts a tmpfs of 2 MB for the snapshots in a mount namespace of its own; it is removed with the namespace's last process.
INSIDE = """
import ctypes, os, sys
folder = sys.argv[1].encode()
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"shoal", folder, b"tmpfs", 0, b"size=2m"):
    sys.exit(os.strerror(ctypes.get_errno()))
print("mounted", flush=True)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def test_no_space_for_snapshots_for_a_while(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "job.yaml").write_text(MANIFEST)
    snapshots = tmp_path / "state" / "full" / "snapshots"
    snapshots.mkdir(parents=True)
    said = tmp_path / "said"
    with said.open("wb") as log, (tmp_path / "out").open("wb") as out:
        running = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", INSIDE, str(snapshots),
             "-m", "shoal.cli", "run", "job.yaml", "--output", "json"],
            cwd=tmp_path, env=os.environ | {"SHOAL_STATE": str(tmp_path / "state")}, stdout=out, stderr=log,
        )  # fmt: skip
        try:
            inside = Path(f"/proc/{running.pid}/root") / snapshots.relative_to("/")
            wait_for(running, lambda: any(inside.glob("pserver-0/*.safetensors")), said)
            filler = inside / "filler"
            fill(filler)
            wait_for(running, lambda: "the disk is full" in said.read_text(), said)
            filler.unlink()
            assert running.wait(120) == 0, said.read_text()
        finally:
            running.terminate()
            running.wait(30)
    lines = (tmp_path / "out").read_text().splitlines()
    assert json.loads(lines[-1])["samples"] == {"expected": 4800, "counted": 4800, "lost": 0, "twice": 0, "skipped": 0}
    assert len(re.findall("the disk is full", said.read_text())) < 10, "it is not logged at every attempt"
    assert (tmp_path / "model.safetensors").exists()


def fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(b"\0" * 4096)
        except OSError:
            return


def wait_for(running: subprocess.Popen[bytes], found, said: Path) -> None:
    end = time.monotonic() + 90
    while not found():
        assert running.poll() is None, said.read_text()
        assert time.monotonic() < end, said.read_text()
        time.sleep(0.05)  # polling interval
