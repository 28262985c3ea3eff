"""The optimizers that a parameter server can run, and the encoding of their options.

A server has a slice of the parameters and one gradient at a time. Its results equal those of a plain loop only for the
optimizers of ``torch.optim`` that treat every element separately. They are listed here by their exact class, as neither a
subclass nor a class with the same options guarantees that. For a sparse table PyTorch must change only the pushed rows,
which is so for three optimizers and not all of their options.

The trainer calls ``check_dense`` and ``check_sparse`` when it registers, so that the script's ``prepare`` raises the error,
with the fix. Options are sent as JSON values, with each push if they changed; optimizers are never sent.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = [
    "DENSE",
    "SPARSE",
    "UnsupportedOptimizer",
    "build",
    "check_changed",
    "check_dense",
    "check_sparse",
    "from_json",
    "group_options",
    "import_all",
    "keeps_gradients",
    "optimizer_name",
    "row_state",
]

DENSE = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop", "Adadelta", "Rprop")
"""The optimizers for dense parameters."""

SPARSE = ("SGD", "Adagrad", "SparseAdam")
"""The optimizers for sparse tables."""

_REASONS = {
    "LBFGS": "it needs the whole model at once and evaluates the loss several times a step",
    "Adafactor": "it keeps row and column statistics of whole matrices, and parameters are cut into slots",
    "Muon": "it orthogonalises whole matrices, and parameters are cut into slots",
    "ASGD": "the average that it keeps beside the parameters could not be read by the script",
    "SparseAdam": "it is for embeddings with sparse=True; use Adam for the other parameters",
}

_FORBIDDEN = {
    "capturable": "CUDA graphs of the update cannot reach the parameter server",
    "differentiable": "nothing can be differentiated through the parameter server",
}

# Options of execution, without influence on the result: the server chooses them.
_EXECUTION = {"foreach", "fused", *_FORBIDDEN}

_KNOWN = {
    "lr",
    "momentum",
    "dampening",
    "weight_decay",
    "nesterov",
    "maximize",
    "betas",
    "eps",
    "amsgrad",
    "momentum_decay",
    "decoupled_weight_decay",
    "lr_decay",
    "initial_accumulator_value",
    "alpha",
    "centered",
    "rho",
    "etas",
    "step_sizes",
}


class UnsupportedOptimizer(ValueError):  # noqa: N818 - it names what was given, not what went wrong
    """An optimizer, or one of its options, that cannot run on parameter servers; the message has the reason and the fix."""


def optimizer_name(optimizer: Optimizer) -> str:
    """Return the name under which an optimizer of the script is registered.

    Raises:
        UnsupportedOptimizer: Its class is not one of ``torch.optim``.
    """
    name = type(optimizer).__name__
    if type(optimizer) is getattr(torch.optim, name, None):
        return name
    raise UnsupportedOptimizer(
        f"{type(optimizer).__module__}.{name} is not one of torch.optim's own classes: parameter servers run these and "
        f"no code of the script; use one of {', '.join(DENSE)}"
    )


def check_dense(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an optimizer that cannot update dense parameters slice by slice.

    Args:
        name: The class in ``torch.optim``.
        options: The options of a parameter group, as ``group_options`` returns them.

    Raises:
        UnsupportedOptimizer: The optimizer or an option is not supported; the message has the reason and the fix.
    """
    if name not in DENSE:
        reason = _REASONS.get(name, "it is not known to treat every element by itself")
        raise UnsupportedOptimizer(f"{name} cannot run on parameter servers: {reason}; use one of {', '.join(DENSE)}")
    _try(name, options)


def check_sparse(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an optimizer that would change other rows of a sparse table than the pushed ones.

    Args:
        name: The class in ``torch.optim``.
        options: The options of a parameter group, as ``group_options`` returns them.

    Raises:
        UnsupportedOptimizer: The optimizer or an option is not supported; the message has the reason and the fix.
    """
    if name not in SPARSE:
        raise UnsupportedOptimizer(
            f"{name} cannot train an embedding with sparse=True: PyTorch has {', '.join(SPARSE)} for these; give the "
            "embedding an optimizer of its own, or set sparse=False"
        )
    for option in ("momentum", "weight_decay", "nesterov"):
        if options.get(option):
            raise UnsupportedOptimizer(
                f"{name} with {option}={options[option]} would have to change rows of a sparse=True embedding that a "
                f"batch does not use; set {option}=0 for the embedding's group, or sparse=False"
            )
    _try(name, options)


def group_options(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a parameter group that influence the result, as JSON values.

    The parameters, the options of execution (``foreach``, ``fused``) and the values that schedulers store in the group
    (``initial_lr``) are left out.

    Raises:
        UnsupportedOptimizer: ``capturable`` or ``differentiable`` is set, or a value is not a number.
    """
    _refuse_forbidden(group)
    return {name: _to_json(name, value) for name, value in group.items() if name in _KNOWN}


def from_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as torch accepts them: lists become tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def check_changed(name: str, known: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
    """Check that the options of a push are options of the optimizer, with values of the same type as before.

    torch would detect a text in place of a number only during the step, after it has changed some parameters.

    Raises:
        ValueError: An option is unknown, or the type of its value has changed.
    """
    strange = sorted(changed.keys() - known.keys())
    if strange:
        raise ValueError(f"{name} has no option {', '.join(strange)}")
    for option, value in changed.items():
        if known[option] is not None and _kind(value) != _kind(known[option]):
            raise ValueError(f"{name} cannot take {value!r} as {option}: it was {known[option]!r}")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_kind, value))}]"
    return type(value).__name__


def build(name: str, parameters: Iterable[Tensor], options: Mapping[str, Any]) -> Optimizer:
    """Create an optimizer by its name and options.

    It updates lists of tensors at once if it can (``foreach``), with the same values as a plain loop; ``fused``
    optimizers round differently.

    Raises:
        UnsupportedOptimizer: An option does not exist, or has a value that torch refuses.
    """
    if name not in DENSE and name not in SPARSE:
        raise UnsupportedOptimizer(f"{name} cannot run on parameter servers; use one of {', '.join(DENSE)}")
    _refuse_forbidden(options)
    kind: type[Optimizer] = getattr(torch.optim, name)
    accepted = inspect.signature(kind).parameters
    chosen = {option: value for option, value in from_json(options).items() if option not in _EXECUTION}
    if name == "AdamW" and chosen.get("decoupled_weight_decay", True):
        # Newer versions of torch record this property of AdamW in the group, but do not accept it as an argument.
        chosen.pop("decoupled_weight_decay", None)
    # A version of torch without the option behaves as with its default.
    chosen = {option: value for option, value in chosen.items() if option in accepted or value is not False}
    strange = sorted(chosen.keys() - accepted.keys())
    if strange:
        raise UnsupportedOptimizer(f"{name} has no option {', '.join(strange)} in torch {torch.__version__}")
    if "foreach" in accepted:
        chosen["foreach"] = True
    try:
        return kind(parameters, **chosen)
    except (TypeError, ValueError) as error:
        raise UnsupportedOptimizer(f"{name} refuses its options: {error}") from error


def keeps_gradients(name: str, options: Mapping[str, Any]) -> bool:
    """Return whether a step leaves the gradients unchanged: they may be in memory that a trainer pushes again."""
    return name != "Rprop" and not options.get("nesterov")


def row_state(name: str, options: Mapping[str, Any]) -> dict[str, float]:
    """Return the state that a sparse optimizer keeps per element, by name, with its initial values.

    Raises:
        UnsupportedOptimizer: The optimizer does not support sparse tables.
    """
    if name == "SGD":
        return {}
    if name == "Adagrad":
        return {"sum": float(options.get("initial_accumulator_value", 0.0))}
    if name == "SparseAdam":
        return {"exp_avg": 0.0, "exp_avg_sq": 0.0}
    raise UnsupportedOptimizer(f"{name} cannot train an embedding with sparse=True; use one of {', '.join(SPARSE)}")


def _try(name: str, options: Mapping[str, Any]) -> None:
    build(name, [torch.zeros(1)], options)


def _refuse_forbidden(options: Mapping[str, Any]) -> None:
    for option, reason in _FORBIDDEN.items():
        if options.get(option):
            raise UnsupportedOptimizer(f"{option}=True cannot be used: {reason}; set {option}=False")


def _to_json(name: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise UnsupportedOptimizer(f"{name} is a tensor of {value.numel()} elements; give it as a number")
        return value.item()
    if isinstance(value, tuple | list):
        return [_to_json(name, part) for part in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    if hasattr(value, "item"):
        return value.item()
    raise UnsupportedOptimizer(f"{name} is {value!r}; give it as a number")


def import_all() -> None:
    """Import what torch imports with its first optimizer, before a slot is restored or a trainer joins."""
    torch.optim.SGD([torch.zeros(1)], lr=0.1)
