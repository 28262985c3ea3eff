"""Detects gradients of a batch to which the next batch adds: accumulation by hand, or gradients that are never cleared.

In a job each batch is a step, part of an accumulation that was passed to ``prepare``, or skipped. If a script called
``backward`` on several batches and ``step`` on the last one, all but that one would count as skipped, while their gradients,
partly computed on old parameters, would be in one step. This is therefore refused at the second batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from shoal.trainer.refusal import Refused

__all__ = ["Accumulation"]

PARAMETERS_CHECKED = 16
"""Minimum number of parameters whose gradients are checked for another backward pass; all if there are fewer."""


class Accumulation:
    """Watches the gradients that remain after a batch.

    Args:
        parameters: The dense parameters.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._handles: list[Any] = []
        self._added = self._stepped = False

    def end_batch(self, *, stepped: bool, accumulating: bool) -> bool:
        """Check the gradients at the end of a batch.

        Args:
            stepped: Whether the script called ``step``.
            accumulating: Whether the next batch is to add to its gradients.

        Returns:
            Whether the batch has gradients or called ``step``.

        Raises:
            Refused: The batch added to gradients of an earlier batch.
        """
        self.check()
        self._forget()
        self._stepped = stepped
        if stepped:
            # Most scripts clear gradients at the next batch; one parameter is enough to detect one that does not.
            first = next((p for p in self._parameters if p.grad is not None), None)
            if first is not None and not accumulating:
                self._follow([first])
            return True
        found = [p for p in self._parameters if p.grad is not None]
        if not found:
            return False
        if not accumulating:
            self._follow(found[:: max(1, len(found) // PARAMETERS_CHECKED)])
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
        """Note that the script cleared gradients with its optimizer."""
        if not self._added:
            self._forget()

    def check(self) -> None:
        """Check that no backward pass added to gradients of an earlier batch.

        Raises:
            Refused: One did.
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
