"""What stands in for the user's optimizer in the loop: it notes that a step was made, and with which gradients.

The parameters move on the parameter servers, so ``step`` here only takes hold of the gradients as they are at that
moment (clipped, unscaled). It takes references, not copies; a backward pass that comes before they are pushed (that of a
GAN's generator, say) adds to a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from shoal.trainer.describe import Refusal

__all__ = ["SharedOptimizer"]


def _version(tensor: Tensor) -> int:
    """How often it was changed in place: autograd's own counter, of which torch has no public name."""
    return tensor._version  # noqa: SLF001


class SharedOptimizer(Optimizer):
    """Shares the parameter groups of the user's optimizer, so that schedulers, clipping and GradScaler work on them.

    Args:
        inner: The user's.
        closing: Whether the present batch closes its accumulation; in the middle of one ``step`` and ``zero_grad`` do
            nothing.
        stepped: Called at each step that counts.
    """

    def __init__(self, inner: Optimizer, *, closing: Callable[[], bool], stepped: Callable[[], None]) -> None:
        super().__init__(inner.param_groups, inner.defaults)
        self.inner = inner
        self._closing = closing
        self._stepped = stepped
        self._taken: dict[int, tuple[Tensor, int]] = {}
        """Parameter's id -> its gradient at the step, and the version that it had."""
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            if parameter.requires_grad:
                parameter.register_hook(lambda _, parameter=parameter: self._keep(parameter))

    def _keep(self, parameter: Tensor) -> None:
        held = self._taken.get(id(parameter))
        if held is not None and held[0] is parameter.grad:
            parameter.grad = parameter.grad.clone()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take the gradients of this batch; they are pushed when the next one is asked for."""
        self._asked = True
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        if self._closing():
            self._taken = {
                id(parameter): (parameter.grad, _version(parameter.grad))
                for group in self.param_groups
                for parameter in group["params"]
                if parameter.grad is not None
            }
            self._stepped()
        return result

    def take(self) -> dict[int, Tensor]:
        """The gradients of the step, by the parameter's id; those of parameters without one are left out.

        Raises:
            Refusal: The script changed one in place after the step.
        """
        taken, self._taken = self._taken, {}
        if any(_version(gradient) != version for gradient, version in taken.values()):
            raise Refusal(
                "a gradient was changed in place after optimizer.step(), before the next batch was asked for; clear "
                "gradients by optimizer.zero_grad() or zero_grad(set_to_none=True), and change them before the step"
            )
        return {key: gradient for key, (gradient, _) in taken.items()}

    @property
    def closes(self) -> bool:
        """Whether the step of this batch counts: false for all but the last batch of an accumulation.

        What a plain loop does once per step (clipping, a GradScaler's ``unscale_``, ``step`` and ``update``) belongs
        behind ``if optimizer.closes``.
        """
        return self._closing()

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002 - torch's signature
        """Forget the gradients, except in the middle of an accumulation."""
        del set_to_none  # zeroing in place would reach into what is about to be pushed
        # Before the batch's step the gradients at hand are those of the accumulation so far; after it, the next one's.
        if not self._closing() if self._asked else self._accumulating:
            return
        super().zero_grad(set_to_none=True)

    _accumulating = False
    _asked = False

    def in_accumulation(self, value: bool) -> None:  # noqa: FBT001
        """A batch begins: do the gradients at hand belong to an accumulation that goes on?"""
        self._accumulating = value
        self._asked = False

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """GradScaler asks this in its ``step``: false, it looks for infinite gradients itself, and skips the step.

        Raises:
            Refusal: It is in the middle of an accumulation, where ``update`` could change the scale of half a gradient.
        """
        if not self._closing():
            raise Refusal(
                "with accumulate, put the GradScaler's unscale_, step and update behind `if optimizer.closes:`"
            )
        return False

    def state_dict(self) -> dict[str, Any]:
        """Refused: the state is not here.

        Raises:
            Refusal: Always.
        """
        raise Refusal("the optimizer's state is on the parameter servers and in their snapshots; nothing to save here")

    def load_state_dict(self, state_dict: Any) -> None:
        """Refused: the state is not here.

        Raises:
            Refusal: Always.
        """
        del state_dict
        raise Refusal("the optimizer's state is on the parameter servers; load it into the optimizer before prepare")
