"""Gradients of a batch that the next batch adds to: accumulation by hand, or gradients that are never cleared.

In a job each batch is a step, part of an accumulation that ``prepare`` knows, or skipped. A script that calls ``backward``
on several batches and ``step`` on the last one would have all but that one counted as skipped, while their gradients, in
part computed on old parameters, went into one step: so it is found at the second batch and refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from shoal.trainer.refusal import Refused

__all__ = ["Accumulation"]

LOOKED_AT = 16
"""Parameters, at least, whose gradients tell whether there was another backward pass; fewer if there are fewer."""


class Accumulation:
    """Watches the gradients that a batch without a step leaves.

    Args:
        parameters: The dense parameters.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._handles: list[Any] = []
        self._added = self._stepped = False

    def look(self, *, stepped: bool, accumulating: bool) -> bool:
        """A batch is over.

        Args:
            stepped: Whether the script called ``step``.
            accumulating: Whether its gradients are meant to be added to.

        Returns:
            Whether gradients are at hand.

        Raises:
            Refused: It added to gradients of an earlier batch.
        """
        self.check()
        self._forget()
        self._stepped = stepped
        if stepped:
            # Most scripts clear gradients when the next batch is here; one parameter shows whether this one does.
            first = next((p for p in self._parameters if p.grad is not None), None)
            if first is not None and not accumulating:
                self._follow([first])
            return True
        found = [p for p in self._parameters if p.grad is not None]
        if not found:
            return False
        if not accumulating:
            self._follow(found[:: max(1, len(found) // LOOKED_AT)])
        return True

    def _follow(self, parameters: Sequence[nn.Parameter]) -> None:
        for parameter in parameters:
            if parameter.requires_grad:
                hooked: Any = parameter
                self._handles.append(hooked.register_hook(self._hook(parameter, parameter.grad)))

    def _hook(self, parameter: nn.Parameter, left: Tensor | None) -> Callable[[Tensor], None]:
        def backward(_: Tensor) -> None:
            if not self._added and parameter.grad is left and left is not None and bool(left.any()):
                self._added = True

        return backward

    def cleared(self) -> None:
        """The script cleared gradients by its optimizer."""
        if not self._added:
            self._forget()

    def check(self) -> None:
        """Look whether a backward pass added to what an earlier batch left.

        Raises:
            Refused: It did.
        """
        if self._added and self._stepped:
            raise Refused(
                "gradients that optimizer.step() has used are added to by the next batch: they would add up in each trainer "
                "by itself. Clear them for every batch: optimizer.zero_grad()"
            )
        if self._added:
            raise Refused(
                "gradients of a batch without optimizer.step() are added to by the next batch: an accumulation by hand. "
                "Let the job do it: prepare(..., accumulate=N), and call backward, step and zero_grad for every batch "
                "(divide the loss by N, as ever); clear gradients by optimizer.zero_grad() where a batch is to be skipped"
            )

    def _forget(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._added = False
