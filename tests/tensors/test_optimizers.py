"""Unsupported optimizers are refused with an actionable message, and options survive serialisation."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from shoal.tensors.optimizers import (
    DENSE,
    SPARSE,
    UnsupportedOptimizer,
    build,
    check_dense,
    check_sparse,
    group_options,
    optimizer_name,
)


class Mine(torch.optim.SGD):
    """A subclass, which may compute any update."""


@pytest.mark.parametrize("name", sorted({*DENSE, *SPARSE}))
def test_options_survive_the_journey(name: str) -> None:
    original = getattr(torch.optim, name)([torch.zeros(2)])
    options = json.loads(json.dumps(group_options(original.param_groups[0])))
    rebuilt = build(optimizer_name(original), [torch.zeros(2)], options)
    left, right = (
        {k: v for k, v in optimizer.param_groups[0].items() if k not in ("params", "foreach")}
        for optimizer in (original, rebuilt)
    )
    assert left == right
    (check_dense if name in DENSE else check_sparse)(name, options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("LBFGS", {}, "needs the whole model at once"),
        ("Adafactor", {}, "row and column statistics"),
        ("Muon", {}, "orthogonalises whole matrices"),
        ("ASGD", {}, "could not be read by the script"),
        ("SparseAdam", {}, "use Adam for the other parameters"),
        ("Lion", {}, "not known to treat every element by itself; use one of SGD, Adam"),
        ("Adam", {"capturable": True}, "capturable=True cannot be used.*set capturable=False"),
        ("SGD", {"differentiable": True}, "differentiable=True cannot be used"),
        ("Adam", {"lr": -1}, "Adam refuses its options: Invalid learning rate: -1"),
        ("Adam", {"momentum": 0.9}, "Adam has no option momentum in torch"),
        ("SGD", {"nesterov": True, "momentum": 0}, "SGD refuses its options: Nesterov momentum requires"),
    ],
)
def test_refused_for_dense_parameters(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedOptimizer, match=message):
        check_dense(name, options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Adam", {}, "PyTorch has SGD, Adagrad, SparseAdam for these"),
        ("SGD", {"momentum": 0.9}, "SGD with momentum=0.9 would have to change rows .* set momentum=0"),
        ("Adagrad", {"weight_decay": 0.1}, "Adagrad with weight_decay=0.1"),
    ],
)
def test_refused_for_sparse_tables(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedOptimizer, match=message):
        check_sparse(name, options)


def test_only_the_exact_classes_of_torch() -> None:
    assert optimizer_name(torch.optim.AdamW([torch.zeros(1)])) == "AdamW"
    with pytest.raises(UnsupportedOptimizer, match=r"Mine is not one of torch\.optim's own classes"):
        optimizer_name(Mine([torch.zeros(1)]))
    pretender = type("SGD", (torch.optim.SGD,), {})
    with pytest.raises(UnsupportedOptimizer, match=r"SGD is not one of torch\.optim's own"):
        optimizer_name(pretender([torch.zeros(1)]))


def test_numbers_may_come_as_tensors_and_nothing_else() -> None:
    options = group_options({"lr": torch.tensor(0.5), "betas": (torch.tensor(0.5), 0.9), "initial_lr": 3})
    assert options == {"lr": 0.5, "betas": [0.5, 0.9]}
    with pytest.raises(UnsupportedOptimizer, match="lr is a tensor of 2 elements; give it as a number"):
        group_options({"lr": torch.zeros(2)})
    with pytest.raises(UnsupportedOptimizer, match="lr is 'fast'; give it as a number"):
        group_options({"lr": "fast"})
    with pytest.raises(UnsupportedOptimizer, match="capturable=True"):
        group_options({"lr": 0.1, "capturable": True})
