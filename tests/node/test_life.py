"""A job from ``kubectl apply`` to its model, in real pods."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.cluster, pytest.mark.node, pytest.mark.timeout(180)]


def check(world, job: str, file, *, epochs: int) -> None:
    """Check that every entry of the model equals the number of epochs, and that the servers' own counts agree."""
    model = load_file(file)
    for name in ("dense", "table.weight"):
        counts = model[name].flatten()
        assert torch.equal(counts, torch.full_like(counts, epochs)), (name, counts.unique(return_counts=True))
    samples = world.record(job, "outcome")["account"]["samples"]
    expected = len(model["dense"]) * epochs
    assert samples == {"expected": expected, "counted": expected, "lost": 0, "twice": 0, "skipped": 0}
    assert world.status(job)["account"] | {"expected": expected, "counted": expected} == world.status(job)["account"]


def test_a_job_trains_in_pods_from_apply_to_complete(world):
    folder = world.claim("model")
    output = {"path": "models/small.safetensors", "volumeClaimName": "model"}
    world.apply("small", **world.counting(trainer={"minReplicas": 2}, output=output))
    world.until(lambda: world.reported_state("small") is not None, "the master")
    world.until(lambda: world.reported_state("small").samples, "the first samples")
    world.until(lambda: world.status("small").get("state") == "Complete", "its end")
    world.kubectl("wait", "tj/small", "--for=condition=Complete", "--timeout=60s")
    check(world, "small", folder / "models" / "small.safetensors", epochs=2)
    world.until(lambda: "configmap/small-metrics" in world.kubectl("get", "configmaps", "-o", "name"), "its values")
    logged = json.loads(world.get("configmap/small-metrics")["data"]["metrics.json"])
    assert all(math.isfinite(record["loss"]) for record in logged)
    assert 1 <= logged[-1]["epoch"] <= 2
    (change,) = world.status("small")["history"]
    assert (change["before"], change["after"], change["by"]) == (0, 2, "kubectl-client-side-apply")
    for index in range(2):
        said = world.kubectl("logs", f"small-trainer-{index}")
        assert f"trainer {index} begins" in said
        assert "epoch 1" in said
    world.until(lambda: not world.pods("small", "pserver") and not world.pods("small", "master"), "servers to go")
    ended = world.pods("small", "trainer")
    assert {name: pod["status"]["phase"] for name, pod in ended.items()} == {
        "small-trainer-0": "Succeeded",
        "small-trainer-1": "Succeeded",
    }
