"""The example with real data, as its folder has it for a cluster: only the image and what belongs to it are another."""

from __future__ import annotations

import json
import os

import pytest
from safetensors.torch import load_file

from tests.cluster.image import IMAGE
from tests.node.jobs import ROOT, template

pytestmark = [pytest.mark.cluster, pytest.mark.node, pytest.mark.timeout(300)]

FLIGHTS = ROOT / "examples" / "flights"


def test_flights_trains_on_a_cluster(world):
    folder = world.volume("flights-model")
    for _ in range(2):
        world.volume()
    roles = {"trainer": "trainer", "parameterServer": "pserver", "master": "master"}
    spec = {part: {"template": template(role)} for part, role in roles.items()}
    # An image would have the files of the example in its working directory.
    spec["trainer"]["template"]["spec"]["containers"][0]["workingDir"] = str(FLIGHTS)
    overlay = world.folder / "overlay"
    overlay.mkdir()
    patch = {"apiVersion": "shoal.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "flights"},
             "spec": {"image": IMAGE, "epochs": 1, **spec}}  # fmt: skip
    (overlay / "patch.yaml").write_text(json.dumps(patch))
    base = os.path.relpath(FLIGHTS, overlay)
    kustomization = {"resources": [base], "namespace": world.namespace, "patches": [{"path": "patch.yaml"}]}
    (overlay / "kustomization.yaml").write_text(json.dumps(kustomization))
    world.cluster.kubectl("apply", "-k", str(overlay))
    world.until(lambda: (told := world.told("flights")) and told.samples, "the first samples")
    world.until(lambda: world.status("flights").get("state") == "Complete", "its end", seconds=200)
    samples = world.record("flights", "outcome")["account"]["samples"]
    assert samples["counted"] == samples["expected"] > 290_000
    assert (samples["lost"], samples["twice"]) == (0, 0)
    assert load_file(folder / "model.safetensors")
    said = world.kubectl("logs", "flights-trainer-0")
    print(said)
    score = float(said.rpartition("AUC ")[2])
    assert score > 0.7
