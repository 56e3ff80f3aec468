"""Sharpness-aware minimization: SAM (Foret et al. 2021, arXiv 2010.01412) and ASAM (Kwon et al. 2021).

A step has two passes. The first gradient g leads to the worst weights w + e nearby, with e = ρ g / ‖g‖. The
gradient there updates w. The adaptive form measures distances relative to each weight:
e = ρ w² g / ‖|w| g‖.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from project.runtime.bounds import Range

Closure = Callable[[], Any]

if TYPE_CHECKING:
    Base = torch.optim.Optimizer
else:
    Base = object


class SharpnessAware(Base):
    """Mixin that turns the step of an optimizer into one of sharpness-aware minimization.

    Not for gradient accumulation, nor for float16 with a gradient scaler: both split a step otherwise. Every
    rank of a DDP run perturbs by the mean gradient. With gradient clipping, both gradients are clipped. Batch
    norm counts both passes in its running statistics; metrics count the first.
    """

    rho: float
    adaptive: bool
    is_second_pass = False
    """True while the closure computes the gradient at the perturbed weights."""

    def step(self, closure: Closure) -> Any:  # type: ignore[override]
        """Make a step.

        Args:
            closure: clears the gradients, computes the loss and its gradients, and returns the loss. It is
                called twice.

        Returns:
            The loss at the weights before the step.
        """
        with torch.enable_grad():
            loss = closure()
        shifts = self._perturb()
        self.is_second_pass = True
        try:
            with torch.enable_grad():
                closure()
        finally:
            self.is_second_pass = False
            with torch.no_grad():
                for weight, original in shifts:
                    weight.copy_(original)
        super().step()
        return loss

    @torch.no_grad()
    def _perturb(self) -> list[tuple[Tensor, Tensor]]:
        """Move the weights by e; return weights and their former values."""
        weights = [
            weight for group in self.param_groups for weight in group["params"] if weight.grad is not None
        ]
        if not weights:
            return []
        gradients = [weight.grad for weight in weights]
        scaled = torch._foreach_mul(gradients, torch._foreach_abs(weights)) if self.adaptive else gradients
        norm = torch.nn.utils.get_total_norm(scaled)
        originals = [weight.clone() for weight in weights]
        factor = self.rho / (norm + 1e-12)
        for weight, gradient in zip(weights, gradients, strict=True):
            shift = weight.square() * gradient if self.adaptive else gradient
            weight.add_(shift * factor.to(weight.dtype))
        return list(zip(weights, originals, strict=True))


class SAM(SharpnessAware, torch.optim.SGD):  # type: ignore[misc]
    """Sharpness-aware minimization with SGD.

    Args:
        params: parameters, or parameter groups.
        lr: learning rate [0.001].
        rho: radius of the neighborhood, ρ [0.05]; about 10 times as large for the adaptive form.
        adaptive: measure distances relative to the size of each weight (ASAM) [False].
        momentum: see `torch.optim.SGD` [0].
        nesterov: see `torch.optim.SGD` [False].
        weight_decay: see `torch.optim.SGD` [0].
        fused: see `torch.optim.SGD` [None].
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Annotated[float, Range(0)] = 1e-3,
        rho: Annotated[float, Range(above=0)] = 0.05,
        adaptive: bool = False,
        momentum: Annotated[float, Range(0)] = 0.0,
        nesterov: bool = False,
        weight_decay: Annotated[float, Range(0)] = 0.0,
        fused: bool | None = None,
    ) -> None:
        self.rho, self.adaptive = rho, adaptive
        super().__init__(
            params, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=fused
        )


class SAMAdamW(SharpnessAware, torch.optim.AdamW):  # type: ignore[misc]
    """Sharpness-aware minimization with AdamW.

    Args:
        params: parameters, or parameter groups.
        lr: learning rate [0.001].
        rho: see `SAM` [0.05].
        adaptive: see `SAM` [False].
        betas: see `torch.optim.AdamW` [(0.9, 0.999)].
        weight_decay: see `torch.optim.AdamW` [0.01].
        fused: see `torch.optim.AdamW` [None].
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Annotated[float, Range(0)] = 1e-3,
        rho: Annotated[float, Range(above=0)] = 0.05,
        adaptive: bool = False,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: Annotated[float, Range(0)] = 0.01,
        fused: bool | None = None,
    ) -> None:
        self.rho, self.adaptive = rho, adaptive
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)
