"""The digits example's data and model, from its script."""

import runpy
from pathlib import Path

import torch

SCRIPT = Path(__file__).parents[2] / "examples" / "digits" / "train.py"


def test_images_are_split_in_two_and_fit_the_network():
    script = runpy.run_path(str(SCRIPT))
    train, held_out = script["load"]()
    assert (len(train), len(held_out)) == (1437, 360)
    images, labels = held_out.tensors
    assert images.shape == (360, 1, 8, 8)
    assert 0 <= images.min() <= images.max() == 1
    assert 0 <= script["accuracy"](script["network"](), images, labels)["accuracy"] <= 1
    assert torch.equal(labels.unique(), torch.arange(10))
