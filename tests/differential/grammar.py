"""The grammar of training scripts: hypothesis strategies that draw correct scripts, and scripts with one mistake."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from shoal.tensors.optimizers import DENSE, SPARSE
from tests.differential.building import BLOCKS, SCHEDULERS, TABLES
from tests.differential.mistakes import MISTAKES
from tests.differential.spec import Block, Data, Optimizer, Scheduler, Spec

RATES = {"SGD": (0.05, 0.1), "Adadelta": (1.0, 0.5)}
ROUNDED_GRADIENTS = {"attention", "transformer", "batch norm"}
"""With these blocks some gradients are zero except for rounding (of a key's bias; of a bias before a batch norm). Rprop is not
drawn with them, because it steps by the gradient's sign alone, which is then arbitrary."""
OPTIONS: dict[str, list[tuple[tuple[str, Any], ...]]] = {
    "SGD": [
        (),
        (("momentum", 0.9),),
        (("momentum", 0.8), ("nesterov", True)),
        (("momentum", 0.5), ("dampening", 0.2), ("weight_decay", 0.01)),
        (("weight_decay", 0.1), ("maximize", True)),
    ],
    "Adam": [(), (("amsgrad", True),), (("weight_decay", 0.1), ("betas", (0.5, 0.9)))],
    "AdamW": [(), (("weight_decay", 0.2), ("amsgrad", True))],
    "NAdam": [(), (("momentum_decay", 0.01), ("weight_decay", 0.1), ("decoupled_weight_decay", True))],
    "RAdam": [(), (("weight_decay", 0.1), ("betas", (0.5, 0.7)))],
    "Adamax": [(), (("weight_decay", 0.1),)],
    "Adagrad": [(), (("lr_decay", 0.1), ("initial_accumulator_value", 0.5)), (("weight_decay", 0.1),)],
    "RMSprop": [(), (("centered", True), ("momentum", 0.5)), (("alpha", 0.8), ("weight_decay", 0.1))],
    "Adadelta": [(), (("rho", 0.8), ("weight_decay", 0.1))],
    "Rprop": [(), (("etas", (0.4, 1.3)), ("step_sizes", (1e-5, 0.5)))],
}
EPS = {"Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adadelta", "SparseAdam", "Adagrad"}
"""Optimizers that divide by the size of the gradients: a large eps keeps steps of rounding errors small."""
SPARSE_OPTIONS: dict[str, list[tuple[tuple[str, Any], ...]]] = {
    "SGD": [(), (("maximize", True),)],
    "Adagrad": [(), (("lr_decay", 0.1),), (("initial_accumulator_value", 0.5),)],
    "SparseAdam": [(), (("betas", (0.5, 0.9)),)],
}
CHANGES: dict[str, list[tuple[str, Any]]] = {
    "SGD": [("weight_decay", 0.05), ("momentum", 0.7)],
    "Adam": [("weight_decay", 0.05), ("betas", (0.7, 0.8))],
    "AdamW": [("weight_decay", 0.3), ("betas", (0.7, 0.8))],
    "RMSprop": [("alpha", 0.5)],
    "Adadelta": [("rho", 0.5)],
}


@st.composite
def optimizers(draw: st.DrawFn, kinds: tuple[str, ...], options: Any, epochs: int, *, scheduled: bool) -> Optimizer:
    """Draw one optimizer."""
    kind = draw(st.sampled_from(kinds))
    chosen = draw(st.sampled_from(options[kind]))
    rate = draw(st.sampled_from(RATES.get(kind, (0.02, 0.01))))
    eps = (("eps", 1e-3),) if kind in EPS else ()
    changes: list[tuple[int, str, Any]] = []
    if epochs > 1 and draw(st.integers(0, 3)) == 3:
        possible = [*(CHANGES.get(kind, []) if options is OPTIONS else []), *([] if scheduled else [("lr", rate / 3)])]
        if scheduled:  # some schedulers change these options, too, and the combination is refused
            possible = [one for one in possible if one[0] not in {"betas", "momentum"}]
        if dict(chosen).get("nesterov"):
            possible = [one for one in possible if one[0] != "momentum"]
        changes = [(1, *one) for one in possible[: draw(st.integers(0, len(possible)))]]
    groups = draw(st.integers(1, 2)) if options is OPTIONS else 1
    return Optimizer(kind, (("lr", rate), *chosen, *eps), groups, tuple(changes))


def rarely(draw: st.DrawFn, one_in: int) -> bool:
    """Draw True with a probability of about 1 in `one_in`; shrinks to False."""
    return draw(st.integers(0, one_in - 1)) == one_in - 1


@st.composite
def blocks(draw: st.DrawFn, epochs: int, *, amp: bool) -> tuple[Block, ...]:
    """Draw the model's blocks: up to three. With autocast no recurrent ones, as not every CPU has them in bfloat16."""
    kinds = [kind for kind in [*BLOCKS, *TABLES] if not (amp and kind in {"lstm", "gru"})]
    made = []
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(kinds))
        held: str | int = "trained"
        if rarely(draw, 4) and kind not in TABLES:
            choices: list[str | int] = ["outside", "inside", "left", *([1, -1] if epochs > 1 else [])]
            held = draw(st.sampled_from(choices))
        made.append(Block(kind, held))
    return tuple(made)


@st.composite
def data(draw: st.DrawFn, *, poison: bool) -> Data:
    """Draw the samples and the loader."""
    samples = draw(st.integers(5, 10))
    sampler = ""
    if rarely(draw, 4):
        sampler = draw(st.sampled_from(["own", "own part", "subset part", "replacement", "batches"]))
    return Data(
        samples=samples,
        batch_size=draw(st.sampled_from([2, 3, 4, 1])),
        drop_last=draw(st.booleans()),
        shuffle=draw(st.booleans()),
        sampler=sampler,
        workers=1 if rarely(draw, 40) else 0,
        poison=draw(st.integers(0, samples - 2)) if poison else -1,
    )


@st.composite
def valid(draw: st.DrawFn) -> Spec:
    """Draw a script that trains in a job as it trains in plain PyTorch."""
    epochs = draw(st.sampled_from([1, 2, 2, 3]))
    amp = rarely(draw, 5)
    parts = draw(blocks(epochs, amp=amp))
    tables = any(block.kind in TABLES for block in parts)
    scheduled = draw(st.booleans())
    count = draw(st.integers(1, 2)) if len(parts) > 1 else 1
    noisy = any(block.kind in ROUNDED_GRADIENTS for block in parts)
    kinds = tuple(kind for kind in DENSE if not (noisy and kind == "Rprop"))
    made = tuple(draw(optimizers(kinds, OPTIONS, epochs, scheduled=scheduled)) for _ in range(count))
    sparse = draw(optimizers(SPARSE, SPARSE_OPTIONS, epochs, scheduled=scheduled)) if tables else Optimizer("SGD")
    inside = tables and _takes_sparse(made[0]) and draw(st.booleans())
    accumulate = draw(st.sampled_from([1, 1, 1, 2, 3]))
    closure = accumulate == 1 and not amp and rarely(draw, 6)
    poison = not closure and (amp or accumulate == 1) and rarely(draw, 5)
    skip = draw(st.sampled_from(["input", "loss", "gradients"])) if poison and not amp else ""
    several = count + tables > 1 and not inside
    alternate = several and not closure and accumulate == 1 and rarely(draw, 3)
    schedulers: tuple[Scheduler, ...] = ()
    if scheduled:
        names = st.sampled_from(list(SCHEDULERS))
        schedulers = (Scheduler(draw(names)),)
        if rarely(draw, 3):
            other = 1 if several and draw(st.booleans()) else 0
            schedulers = (*schedulers, Scheduler(draw(names), other))
    measured = [one for one in schedulers if one.kind == "plateau"]
    if measured:
        schedulers = (measured[0],)
    task_batches = draw(st.sampled_from([None, None, 1, 2, 4]))
    return Spec(
        blocks=parts,
        optimizers=made,
        sparse=sparse,
        sparse_inside=inside,
        data=draw(data(poison=poison)),
        epochs=epochs,
        seed=draw(st.integers(0, 3)),
        servers=draw(st.integers(1, 2)),
        schedulers=schedulers,
        interval=draw(st.sampled_from(["step", "epoch"])) if scheduled else "step",
        script_schedules=draw(st.booleans()) if scheduled else True,
        accumulate=accumulate,
        task_batches=task_batches * accumulate if task_batches else None,
        clip=draw(st.sampled_from(["", "", "norm", "value"])) if not closure else "",
        amp=amp,
        zero=draw(st.sampled_from(["before", "model", "after"])),
        to_none=draw(st.booleans()),
        closure=closure,
        alternate=alternate,
        skip=skip,
        hooks=rarely(draw, 4),
        ema=draw(st.sampled_from([0.0, 0.9])) if not tables and rarely(draw, 4) else 0.0,
        clamp=rarely(draw, 6),
        evaluations=draw(st.integers(1 if measured else 0, 2)),
        middle=draw(st.sampled_from(["evaluate", "save"])) if not alternate and rarely(draw, 5) else "",
        saves=draw(st.sampled_from(["end", "epoch", "best"])),
        stop=draw(st.sampled_from([("epoch", 0), ("batch", 1)])) if rarely(draw, 8) else None,
    )


def _takes_sparse(one: Optimizer) -> bool:
    options = dict(one.options)
    return (
        one.kind in {"SGD", "Adagrad"}
        and not options.get("momentum")
        and not options.get("weight_decay")
        and not one.changes
    )


@st.composite
def mistaken(draw: st.DrawFn) -> Spec:
    """Draw a script with one mistake, which is refused."""
    name = draw(st.sampled_from(list(MISTAKES)))
    spec = replace(
        draw(valid()),
        mistake=name,
        epochs=2,
        schedulers=(),
        accumulate=1,
        task_batches=None,
        amp=False,
        closure=False,
        alternate=False,
        skip="",
        stop=None,
        middle="",
        ema=0.0,
        clamp=False,
        saves="epoch",
    )
    spec = replace(
        spec,
        blocks=tuple(replace(b, held="trained") for b in spec.blocks),
        data=replace(spec.data, poison=-1, workers=0, sampler="", drop_last=False, batch_size=2),
    )
    return MISTAKES[name].prepare(spec)


def specs() -> st.SearchStrategy[Spec]:
    """Draw scripts; one in four has a mistake."""
    return st.one_of(valid(), valid(), valid(), mistaken())
