"""`shoal init`: a new job from a template, a script and a manifest that run at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from shoal.api.reading.script import job_name
from shoal.cli.errors import CommandError

__all__ = ["create_job"]

_SCRIPT: Final = '''"""Train a small network on points in a plane: which of them are inside of a circle."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from shoal import trainer


def data(samples: int, seed: int) -> TensorDataset:
    points = torch.rand(samples, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return TensorDataset(points, (points.norm(dim=1, keepdim=True) < 0.7).float())


def main() -> None:
    job = trainer.join(epochs=3, seed=1)
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = DataLoader(data(20_000, seed=1), batch_size=64, shuffle=True)
    points, inside = data(2_000, seed=2).tensors

    # From here on the samples are shared by all trainers, which may join and leave at any time.
    model, optimizer, loader = job.prepare(model, optimizer, loader)
    for epoch in job.epochs():
        for x, y in loader:
            loss = nn.functional.binary_cross_entropy_with_logits(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            job.log(loss=loss)
        score = job.evaluate(lambda model: {"accuracy": float(((model(points) > 0) == inside).float().mean())})
        print(f"epoch {epoch}: accuracy {score['accuracy']:.3f}", flush=True)
    job.save("model.safetensors")


if __name__ == "__main__":
    main()
'''
_MANIFEST: Final = """# Run it on this machine:  shoal run job.yaml
# On a cluster, without an image of its own:  shoal submit train.py --name NAME --trainers 1:4
apiVersion: shoal.dev/v1alpha1
kind: TrainingJob
metadata:
  name: NAME
spec:
  image: example.org/NAME:1     # for a cluster: an image with train.py, its libraries and Shoal
  command: [python, train.py]
  trainer:
    minReplicas: 1
    maxReplicas: 4
    resources:
      requests: {cpu: "1", memory: 1Gi}
  parameterServer:
    replicas: 1
"""


def create_job(folder: Path) -> None:
    """Write ``train.py`` and ``job.yaml`` into a folder, which is created if it does not exist.

    Raises:
        CommandError: A file exists already, or the folder cannot be written.
    """
    name = job_name(folder.resolve().name)
    files = {"train.py": _SCRIPT, "job.yaml": _MANIFEST.replace("NAME", name)}
    existing = [each for each in files if (folder / each).exists()]
    if existing:
        raise CommandError(f"{folder / existing[0]} exists already; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            (folder / path).write_text(content)
    except OSError as error:
        raise CommandError(f"{folder} cannot be written: {error.strerror}") from None
    where = "" if folder.resolve() == Path.cwd() else f"cd {folder} && "
    sys.stdout.write(
        f"{folder / 'train.py'} and {folder / 'job.yaml'} are written; run it: {where}shoal run job.yaml\n"
    )
