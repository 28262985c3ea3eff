"""Detects changes of the model by the script, and refuses them with the name of the parameter.

The parameters belong to the parameter servers; the next pull would overwrite a write of the script, and other trainers would
not have it. After ``prepare`` only the job may therefore write them, and the parameters that it trains must stay in place. Two
kinds of checks keep the cost low:

- At every step, and again at the end of its batch, a window over the parameters is checked, which moves with every batch:
  the version counters (autograd's count of in-place writes), whether the module still has the parameter, its address, and the
  values of one parameter, as a write through ``.data`` does not increase the counter. In a job the values of the servers are
  also written through ``.data``, so a counter that has increased stays so and is found when the window reaches it.
- At the beginning of a pass over the loader, and before an evaluation or a save, everything is checked, with checksums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from shoal.trainer.refusal import Refused

__all__ = ["MutationDetector", "refuse_averages"]

WINDOW = 32
"""Number of parameters that are checked in one batch."""
SAMPLED_VALUES = 256
"""Number of values of one parameter that are compared in one batch."""
COLUMNS = 64
"""Number of columns whose sums, with those of the rows and each with a different weight, make up a checksum."""


@dataclass(frozen=True, slots=True)
class _Watched:
    name: str
    parameter: nn.Parameter
    places: dict[str, Any]
    """The parameters of its module, by their name there."""
    key: str


class _Window:
    """Parameters that are checked together: stored as columns of a table of `_Watched`, as loops over rows cost more."""

    def __init__(self, watched: Sequence[_Watched]) -> None:
        self._watched = watched
        self._parameters = [w.parameter for w in watched]
        self._places = [w.places for w in watched]
        self._keys = [w.key for w in watched]
        self._seen = self._versions()

    def _versions(self) -> list[int]:
        return [p._version for p in self._parameters]  # noqa: SLF001 - torch has no public name for it

    def set_reference(self) -> None:
        """Take the current version counters as the reference; later writes are the script's."""
        self._seen = self._versions()

    def check_writes(self) -> None:
        """Raise `Refused` if a version counter has changed."""
        now = self._versions()
        if now == self._seen:
            return
        for watched, before, version in zip(self._watched, self._seen, now, strict=True):
            if version != before:
                raise Refused(_written(watched.name))

    def check_places(self) -> None:
        """Raise `Refused` if a module has another parameter, or none, in the place of a watched one."""
        if not all(map(is_, map(dict.get, self._places, self._keys), self._parameters)):
            _refuse_replaced(self._watched)


def _refuse_replaced(watched: Sequence[_Watched]) -> None:
    for each in watched:
        if each.places.get(each.key) is not each.parameter:
            raise Refused(_replaced(each.name))


class MutationDetector:
    """Detects changes of a model's parameters.

    Args:
        model: The module that was passed to ``prepare``.
        parameters: Names and parameters that must not be written: the trained and the frozen ones.
        groups: The optimizers' live parameter groups.
        versions_constant: Whether the job's own writes do not increase version counters, so that they never change.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[tuple[str, nn.Parameter]],
        *,
        groups: Sequence[dict[str, Any]],
        versions_constant: bool,
    ) -> None:
        self._model = model
        self._groups = groups
        self._versions_constant = versions_constant
        places = {id(p): (m._parameters, k) for m in model.modules() for k, p in m._parameters.items()}  # noqa: SLF001
        self._watched = [_Watched(name, p, *places[id(p)]) for name, p in parameters]
        self._all = self._parameters()
        self._held = [id(p) for group in groups for p in group["params"]]
        self._layout = [_layout(w.parameter) for w in self._watched]
        self._sums: list[float] | None = None
        self._window = 0
        self._sampled = 0
        self._sample: Tensor | None = None
        self._windows = [_Window(self._watched[at : at + WINDOW]) for at in range(0, len(self._watched), WINDOW)]
        self._values = [_first_values(w.parameter) for w in self._watched]
        self.set_reference(whole=True)

    def _parameters(self) -> dict[int, str]:
        return {id(p): name for name, p in self._model.named_parameters(remove_duplicate=False)}

    # --- Writes of the job ---

    def batch_begins(self) -> None:
        """Move to the next window for a new batch."""
        if self._watched:
            self._window = (self._window + 1) % len(self._windows)
            self._sampled = (self._sampled + 1) % len(self._watched)
            self.set_reference()

    def set_reference(self, *, whole: bool = False) -> None:
        """Take the current values as the reference; later changes are the script's.

        Args:
            whole: Keep checksums of all parameters until the next step. Default: False.
        """
        if not self._watched:
            return
        self._sums = self._checksums() if whole else None
        if not self._versions_constant:
            for window in self._windows if whole else [self._windows[self._window]]:
                window.set_reference()
        values = self._values[self._sampled]
        self._sample = None if values is None else values.clone()

    def _checksums(self) -> list[float]:
        with torch.no_grad():
            sums = [_checksum(w.parameter.detach()) for w in self._watched]
            return torch.stack([one.cpu() for one in sums]).tolist() if sums else []

    # --- Writes of the script ---

    def check(self) -> None:
        """Check this batch's window.

        Raises:
            Refused: The script wrote, moved or replaced a parameter.
        """
        if not self._watched:
            return
        window = self._windows[self._window]
        window.check_writes()
        window.check_places()
        watched = self._watched[self._sampled]
        if _layout(watched.parameter) != self._layout[self._sampled]:
            raise Refused(_moved(watched.name))
        now = self._values[self._sampled]
        if self._sample is not None and now is not None and not _same(now, self._sample):
            raise Refused(_written(watched.name))

    def check_all(self) -> None:
        """Check all parameters and groups.

        Raises:
            Refused: The script wrote, moved, replaced, added or removed a parameter, or changed an optimizer's groups.
        """
        self._check_places()
        if [id(p) for group in self._groups for p in group["params"]] != self._held:
            raise Refused(
                "the parameters in an optimizer's param_groups were changed after prepare; give the optimizer all "
                "parameters before, and freeze or unfreeze them by requires_grad_"
            )
        for place, watched in enumerate(self._watched):
            if _layout(watched.parameter) != self._layout[place]:
                raise Refused(_moved(watched.name))
        # Without checksums only counters that never change can be checked: the last step changed the others.
        if self._versions_constant or self._sums is not None:
            for window in self._windows:
                window.check_writes()
        if self._sums is not None:
            self._check_sums(self._sums)

    def _check_places(self) -> None:
        now = self._parameters()
        if now == self._all:
            return
        _refuse_replaced(self._watched)
        changed = [name for key, name in (now | self._all).items() if now.get(key) != self._all.get(key)]
        if changed[0] in now.values() and changed[0] in self._all.values():
            raise Refused(_replaced(changed[0]))
        raise Refused(
            f"parameter {changed[0]} was added to the model, or taken from it, after prepare; make the whole model before"
        )

    def _check_sums(self, before: list[float]) -> None:
        for watched, old, new in zip(self._watched, before, self._checksums(), strict=True):
            if old != new:
                raise Refused(_written(watched.name))


def _first_values(parameter: nn.Parameter) -> Tensor | None:
    """Return a view of the first values; None on a device that would need synchronisation, or if there are none."""
    values = parameter.detach()
    if values.device.type != "cpu" or not values.numel():
        return None
    return values.view(-1)[:SAMPLED_VALUES] if values.is_contiguous() else None


_models: WeakSet[nn.Module] = WeakSet()
"""The models of the jobs of this process."""
_update_parameters = AveragedModel.update_parameters


def refuse_averages(model: nn.Module) -> None:
    """Refuse torch's own moving averages of a model from now on: each trainer would only average its own steps."""
    _models.add(model)
    setattr(AveragedModel, "update_parameters", _checked_update)  # noqa: B010 - mypy rejects an assignment to a method


def _checked_update(average: AveragedModel, model: nn.Module) -> None:
    if getattr(model, "_orig_mod", model) in _models:
        raise Refused(
            "AveragedModel.update_parameters: the average would be of this trainer's own steps only, another one in each "
            "trainer, and not be saved; give prepare ema=DECAY, and job.save writes the average of all steps beside the model"
        )
    _update_parameters(average, model)


def _layout(parameter: Tensor) -> tuple[int, torch.dtype]:
    return parameter.data_ptr(), parameter.dtype


def _checksum(values: Tensor) -> Tensor:
    """Return a checksum of the bits, so that NaN equals itself; it depends on values, signs and order."""
    width = {1: torch.uint8, 2: torch.int16}.get(values.element_size(), torch.int32)
    bits = values.contiguous().reshape(-1).view(width)
    even = len(bits) // COLUMNS * COLUMNS
    table = bits[:even].view(-1, COLUMNS)
    parts = (table.sum(0, dtype=torch.int64), table.sum(1, dtype=torch.int64), bits[even:].to(torch.int64))
    return torch.stack([(part * _weights(len(part), part.device)).sum() for part in parts]).sum()


def _weights(count: int, device: torch.device) -> Tensor:
    return torch.arange(1, 2 * count + 1, 2, device=device)


def _same(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left, right) or bool(((left == right) | ((left != left) & (right != right))).all())  # noqa: PLR0124


def _written(name: str) -> str:
    return (
        f"parameter {name} was written by the script after prepare, but the parameter servers hold it and would overwrite "
        "that. Load and initialise (load_state_dict, copy_) before prepare; load a saved model, as for a test at the end, into "
        "another one (copy.deepcopy(model)); give prepare every optimizer that makes steps, "
        "and torch.optim.SGD instead of an update by hand (p.data.add_(p.grad, alpha=-lr)); clamp={...} or max_norm={...} "
        "for a constraint after each step (clamp_, renorm_); ema=... for a moving average of the weights; make a tensor that "
        "the script updates itself a buffer (register_buffer)"
    )


def _replaced(name: str) -> str:
    return (
        f"parameter {name} was replaced or removed after prepare (a new module in its place, a parametrization, "
        "weight_norm, pruning): the job trains the old one; change the model before prepare"
    )


def _moved(name: str) -> str:
    return (
        f"parameter {name} was moved or got another dtype after prepare (model.to(...), .cuda(), .half(), or its .data was "
        "assigned): the job holds the old one; call prepare with model.to(job.device)"
    )
