"""The example with real data, as its folder has it for a cluster: only the image and its settings are different."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from tests.cluster.playground import write_flights

pytestmark = [pytest.mark.cluster, pytest.mark.node, pytest.mark.timeout(300)]


def test_flights_trains_on_a_cluster(world):
    folder = world.volume("flights-model")
    for _ in range(2):
        world.volume()
    overlay = write_flights(world.folder / "overlay", namespace=world.namespace, epochs=1)
    world.cluster.kubectl("apply", "-k", str(overlay))
    world.until(lambda: (reported := world.reported_state("flights")) and reported.samples, "the first samples")
    world.until(lambda: world.status("flights").get("state") == "Complete", "its end", seconds=200)
    samples = world.record("flights", "outcome")["account"]["samples"]
    assert samples["counted"] == samples["expected"] > 290_000
    assert (samples["lost"], samples["twice"]) == (0, 0)
    assert load_file(folder / "model.safetensors")
    said = world.kubectl("logs", "flights-trainer-0")
    print(said)
    score = float(said.rpartition("AUC ")[2])
    assert score > 0.7
