"""A server equals a plain PyTorch loop, for every dense optimizer and any number of slots."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from shoal.protocol.messages import ModelSpec
from shoal.protocol.messages import Tensor as TensorShape
from shoal.protocol.model_spec import differences, digest
from shoal.pserver.state.parameters import Parameters
from shoal.tensors.optimizers import group_options
from tests.pserver.shapes import SIZES, fill, make_shape, make_views, restarted, started, whole

CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "maximize": True}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95)}),
    ("Adam", {"lr": 0.01, "amsgrad": True, "maximize": True}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    ("NAdam", {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {"lr": 0.01, "weight_decay": 0.1}),
    ("Adamax", {"lr": 0.01, "weight_decay": 0.1}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.01, "weight_decay": 0.1, "initial_accumulator_value": 0.3}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.9, "centered": True, "weight_decay": 0.1}),
    ("RMSprop", {"lr": 0.01}),
    ("Adadelta", {"lr": 0.5, "weight_decay": 0.1, "maximize": True}),
    ("Rprop", {"lr": 0.01, "etas": (0.4, 1.3)}),
    ("Rprop", {"lr": 0.01, "maximize": True}),
]


def initial(seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) for size in SIZES.values()]


def gradient(step: int) -> list[Tensor | None]:
    """Return a step's gradients; some are absent in some steps, and one parameter's in the first steps."""
    generator = torch.Generator().manual_seed(100 + step)
    made: list[Tensor | None] = [torch.randn(size, generator=generator) for size in SIZES.values()]
    if step % 3 == 1:
        made[0] = None
    if step < 4:
        made[3] = None
    return made


def absent_of(values: list[Tensor | None]) -> list[int]:
    return [index for index, value in enumerate(values) if value is None]


@pytest.mark.parametrize("slots_total", [1, 3, 16])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_equals_a_plain_loop_also_over_a_restart(name: str, options: dict[str, Any], slots_total: int) -> None:
    shape = make_shape(optimizer=name, options=options)
    plain = [value.clone().requires_grad_() for value in initial()]
    optimizer = getattr(torch.optim, name)(plain, **options)
    server = started(shape, slots_total, initial())
    for step in range(30):
        if step == 13:
            server = restarted(server)
        rate = options["lr"] * (1 + step % 5)
        optimizer.param_groups[0]["lr"] = rate
        values = gradient(step)
        for parameter, value in zip(plain, values, strict=True):
            parameter.grad = None if value is None else value.clone()
        optimizer.step()
        views = fill(make_views(shape, slots_total, list(range(slots_total))), shape, values)
        before = {slot: [t.clone() for t in tensors] for slot, tensors in views.by_slot.items()}
        server.apply(range(slots_total), views, absent=absent_of(values), options={0: {"lr": rate}})
        for slot, tensors in views.by_slot.items():
            assert all(torch.equal(*pair) for pair in zip(tensors, before[slot], strict=True)), "a gradient was written"
    for mine, theirs in zip(whole(server, shape, slots_total), plain, strict=True):
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_slots_fall_behind_and_catch_up_each_by_itself(name: str, options: dict[str, Any]) -> None:
    """Pushes that are applied at some slots and later replayed at the others give the result of a plain loop."""
    shape = make_shape(optimizer=name, options=options)
    straight, ragged = started(shape, 3, initial()), started(shape, 3, initial())
    for step in range(12):
        values = gradient(step)
        views = fill(make_views(shape, 3, [2, 0, 1]), shape, values)
        straight.apply([0, 1, 2], views, absent=absent_of(values))
        ragged.apply([1], views, absent=absent_of(values))
    for step in range(12):
        values = gradient(step)
        ragged.apply([0, 2], fill(make_views(shape, 3, [0, 2]), shape, values), absent=absent_of(values))
    for slot in range(3):
        assert_same(straight.state(slot), ragged.state(slot))


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype
        assert torch.equal(tensor, right[name]), name


def test_options_of_one_push_are_not_kept() -> None:
    shape = make_shape(sizes={"w": [2]}, options={"lr": 1.0})
    server = started(shape, 1, [torch.zeros(2)])
    views = fill(make_views(shape, 1, [0]), shape, [torch.ones(2)])
    server.apply([0], views, options={0: {"lr": 10.0}})
    server.apply([0], views)
    assert whole(server, shape, 1)[0].tolist() == [-11.0, -11.0]


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_other_dtypes(dtype: str) -> None:
    kind = getattr(torch, dtype)
    shape = make_shape(optimizer="Adam", options={"lr": 0.1}, dtype=dtype, sizes={"w": [5]})
    plain = torch.arange(5, dtype=kind).requires_grad_()
    optimizer = torch.optim.Adam([plain], lr=0.1, foreach=True)
    server = started(shape, 3, [torch.arange(5, dtype=kind)])
    for _ in range(4):
        plain.grad = torch.ones(5, dtype=kind)
        optimizer.step()
        server.apply([0, 1, 2], fill(make_views(shape, 3, [0, 1, 2]), shape, [torch.ones(5, dtype=kind)]))
    assert torch.equal(whole(server, shape, 3)[0], plain.detach())


def test_state_and_load_are_exact_and_independent() -> None:
    shape = make_shape(optimizer="Adam", options={"lr": 0.1})
    server = started(shape, 3, initial())
    views = fill(make_views(shape, 3, [0, 1, 2]), shape, initial(2))
    server.apply([0, 1, 2], views)
    saved = server.state(1)
    assert "dense/weight@18" in saved
    assert "state/exp_avg/weight@18" in saved
    fresh = Parameters(shape, 3, seed=5)
    fresh.load(1, saved)
    server.apply([0, 1, 2], views)
    assert_same(fresh.state(1), saved)
    fresh.apply([1], views)
    assert_same(fresh.state(1), server.state(1))
    assert fresh.slots == [1]


def test_a_dropped_slot_leaves_the_others_alone() -> None:
    shape = make_shape(optimizer="Adagrad", options={"lr": 0.1})
    server = started(shape, 3, initial())
    views = fill(make_views(shape, 3, [0, 1, 2]), shape, initial(2))
    server.apply([0, 1, 2], views)
    kept = server.state(2)
    server.drop(1)
    server.drop(1)
    assert server.slots == [0, 2]
    assert_same(server.state(2), kept)
    with pytest.raises(ValueError, match=r"slots \[1\] are not held here; held are \[0, 2\]"):
        server.apply([1], views)
    server.initialise(1, views)
    assert torch.equal(server.export(1).dense[0], views.by_slot[1][0])
    assert float(server.state(1)["state/sum/weight@18"].sum()) == 0


def test_a_push_that_does_not_fit_changes_nothing() -> None:
    shape = make_shape()
    server = started(shape, 2, initial())
    before = [server.state(slot) for slot in (0, 1)]
    only_first = make_views(shape, 2, [0])
    both = fill(make_views(shape, 2, [0, 1]), shape, initial(2))
    with pytest.raises(ValueError, match="cannot be applied at"):
        server.apply([0, 1], only_first)
    with pytest.raises(ValueError, match="SGD has no option colour"):
        server.apply([0, 1], both, options={0: {"colour": 1}})
    with pytest.raises(ValueError, match="no parameter group 4"):
        server.apply([0, 1], both, options={4: {}})
    with pytest.raises(ValueError, match="no table 0"):
        server.apply([0, 1], both, rows=[(0, torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1))])
    for slot in (0, 1):
        assert_same(server.state(slot), before[slot])


def test_load_refuses_what_does_not_fit_and_holds_nothing_then() -> None:
    shape = make_shape()
    saved = started(shape, 2, initial()).state(0)
    fresh = Parameters(shape, 2, seed=5)
    del saved["dense/weight@0"]
    with pytest.raises(ValueError, match="slot 0 has no dense/weight@0"):
        fresh.load(0, saved)
    assert fresh.slots == []


def test_registered_options_come_from_the_group_of_a_scheduled_optimizer() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=torch.tensor(0.5), momentum=0.9)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=10)
    options = group_options(optimizer.param_groups[0])
    assert "initial_lr" not in options
    assert isinstance(options["lr"], float)
    assert {"lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize"} == options.keys()


class Averaged:
    """A plain loop that clamps a parameter after each step and keeps torch's own moving average."""

    def __init__(self, values: list[Tensor], optimizer: str, options: dict[str, Any], *, decay: float) -> None:
        self.module = torch.nn.ParameterList([value.clone() for value in values])
        self.optimizer = getattr(torch.optim, optimizer)(self.module.parameters(), **options)
        self.average = AveragedModel(self.module, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def step(self, gradients: list[Tensor | None]) -> None:
        for parameter, gradient in zip(self.module, gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        self.optimizer.step()
        with torch.no_grad():
            self.module[0].clamp_(-0.5, 0.5).renorm_(2, 0, NORMS["weight"])
            self.module[2].clamp_(min=0.0)
        self.average.update_parameters(self.module)


NORMS = {"weight": 0.75}
CLAMPS: dict[str, list[float | None]] = {"weight": [-0.5, 0.5], "bias": [0.0, None]}


@pytest.mark.parametrize("slots_total", [1, 3, 16])
@pytest.mark.parametrize("decay", [0.999, 0.3])
@pytest.mark.parametrize(("name", "options"), [CASES[1], CASES[5]])
def test_averages_and_constraints_are_those_of_a_plain_loop(
    name: str, options: dict[str, Any], decay: float, slots_total: int
) -> None:
    """They are equal to the bit, also across a restart and with steps in which some or all parameters have no gradient."""
    shape = make_shape(optimizer=name, options=options, clamps=CLAMPS, norms=NORMS, ema=decay)
    loop = Averaged(initial(), name, options, decay=decay)
    server = started(shape, slots_total, initial())
    for mine, theirs in zip(whole(server, shape, slots_total, average=True), initial(), strict=True):
        assert torch.equal(mine, theirs), "the average is the value where no step was applied"
    for step in range(20):
        if step in {1, 9}:
            server = restarted(server)
        values: list[Tensor | None] = [None] * len(SIZES) if step == 6 else gradient(step)
        loop.step(values)
        views = fill(make_views(shape, slots_total, list(range(slots_total))), shape, values)
        server.apply(range(slots_total), views, absent=absent_of(values))
        for found, expected in (
            (whole(server, shape, slots_total), loop.module),
            (whole(server, shape, slots_total, average=True), loop.average.module),
        ):
            for mine, theirs in zip(found, expected, strict=True):
                assert torch.equal(mine, theirs.detach())


def test_each_slot_averages_the_steps_that_it_applied() -> None:
    shape = make_shape(sizes={"w": [4]}, options={"lr": 1.0}, ema=0.5)
    server = started(shape, 2, [torch.zeros(4)])
    views = fill(make_views(shape, 2, [0, 1]), shape, [-torch.ones(4)])
    for slots in ([0], [0, 1], [0]):
        server.apply(slots, views)
    assert whole(server, shape, 2)[0].tolist() == [3.0, 3.0, 1.0, 1.0]
    assert whole(server, shape, 2, average=True)[0].tolist() == [2.25, 2.25, 1.0, 1.0]
    assert server.state(0)["ema/w@0"].tolist() == [2.25, 2.25]
    server.initialise(0, views)
    assert "ema/w@0" not in server.state(0)
    assert whole(server, shape, 2, average=True)[0].tolist() == [-1.0, -1.0, 1.0, 1.0]


def test_an_incomplete_average_is_refused_and_a_job_without_one_raises() -> None:
    shape = make_shape(ema=0.9)
    server = started(shape, 1, initial())
    server.apply([0], fill(make_views(shape, 1, [0]), shape, list(initial(2))))
    saved = server.state(0)
    del saved["ema/bias@0"]
    with pytest.raises(ValueError, match="slot 0 has no ema/bias@0"):
        Parameters(shape, 1, seed=5).load(0, saved)
    plain = make_shape()
    with pytest.raises(ValueError, match="keeps no moving average"):
        whole(started(plain, 1, initial()), plain, 1, average=True)


def test_clamps_and_options_outlast_the_json_of_a_record() -> None:
    shape = make_shape(clamps={"weight": [None, 1.0], "bias": [-1.0, 2.0]}, ema=0.25)
    again = msgspec.json.decode(msgspec.json.encode(shape), type=ModelSpec)
    assert again == shape
    assert digest(again) == digest(shape)
    infinite = make_shape(clamps={"weight": [-math.inf, 1.0]})
    again = msgspec.json.decode(msgspec.json.encode(infinite), type=ModelSpec)
    assert differences(infinite, again) == []
    assert digest(infinite) == digest(again)
    for kind in (infinite, again):
        server = started(kind, 1, [torch.full(size, 3.0) for size in SIZES.values()])
        server.apply([0], fill(make_views(kind, 1, [0]), kind, [torch.zeros(size) for size in SIZES.values()]))
        assert whole(server, kind, 1)[0].unique().tolist() == [1.0]


def test_two_trainers_that_do_not_keep_or_hold_the_same_differ() -> None:
    here, job = make_shape(ema=0.9, clamps={"bias": [0, None]}, norms={"weight": 2.0}), make_shape()
    assert differences(here, job) == [
        "the moving average's decay is 0.9 here, 0.0 in the job",
        "parameter weight is float32 [7, 5], group 0, max_norm 2 here, float32 [7, 5], group 0 in the job",
        "parameter bias is float32 [3], group 0, clamp [0.0, None] here, float32 [3], group 0 in the job",
    ]
    one, other = (msgspec.structs.replace(make_shape(), frozen=value) for value in "ab")
    assert differences(one, other) == [
        "the frozen parameters differ from those of the first trainer; make the model after trainer.join, which seeds, "
        "or load the same file everywhere"
    ]
    assert differences(make_shape(fixed=[TensorShape("mask", [2], "bool")]), make_shape()) == [
        "fixed tensor mask is not in the job"
    ]
