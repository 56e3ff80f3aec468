"""Muon for convolution filters, with SGD for everything else."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from project.modules.optim.parameter_groups import Combined, ParameterGroups, as_groups
from project.runtime.bounds import Range

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration (Jordan 2024, kellerjordan.github.io/posts/muon): steep at 0, so that a few steps
bring singular values anywhere near 1.
"""


def orthogonalize(matrices: Tensor, steps: int, eps: float = 1e-7) -> Tensor:
    """Bring all singular values of each matrix near 1 (0.7 to 1.2 after five steps), by Newton-Schulz.

    Args:
        matrices: (..., M, N), each treated on its own, in their dtype.
        steps: iterations.
        eps: added to a matrix's norm.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    current = matrices.mT if tall else matrices  # the smaller Gram matrix costs less
    current = current / (current.norm(dim=(-2, -1), keepdim=True) + eps)
    for _ in range(steps):
        gram = current @ current.mT
        current = a * current + (b * gram + c * gram @ gram) @ current
    return current.mT if tall else current


class FilterMuon(Optimizer):
    """Muon (Jordan 2024) on filters as matrices: one row an output channel.

    All filters of one shape are orthogonalized together, in bfloat16 on a GPU and in their own precision on
    a CPU. Nothing waits for the device.

    Args:
        params: parameters or groups of them, of two or more dimensions.
        lr: change of a filter's singular values a step.
        momentum: share of the sum of gradients that a step keeps.
        nesterov: look one step of the momentum ahead.
        steps: Newton-Schulz iterations.
        normalize: before each step, scale each parameter's norm to the root of its output channels, so that
            `lr` means the same for all and throughout the training.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.1,
        momentum: float = 0.6,
        nesterov: bool = True,
        steps: int = 3,
        normalize: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "steps": steps,
            "normalize": normalize,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; return the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._step_together(parameters, group)
        return loss

    def _step_together(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Change parameters (O, ...) of one shape."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        sums = [self._sum_of_gradients(parameter) for parameter in parameters]
        torch._foreach_mul_(sums, group["momentum"])
        torch._foreach_add_(sums, gradients)
        directions = sums
        if group["nesterov"]:
            directions = list(torch._foreach_add(gradients, sums, alpha=group["momentum"]))
        matrices = torch.stack([direction.flatten(1) for direction in directions])  # P, O, I * H * W
        if matrices.is_cuda:
            matrices = matrices.bfloat16()
        changes = orthogonalize(matrices, group["steps"]).to(parameters[0].dtype)
        if group["normalize"]:
            norms = torch._foreach_norm(parameters)
            torch._foreach_div_(norms, len(parameters[0]) ** 0.5)
            torch._foreach_clamp_min_(norms, torch.finfo(norms[0].dtype).tiny)  # a filter may be all zeros
            torch._foreach_div_(parameters, norms)
        shaped = [change.view(parameters[0].shape) for change in changes]
        torch._foreach_add_(parameters, shaped, alpha=-group["lr"])

    def _sum_of_gradients(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


class MuonSGD(Combined):
    """Muon for convolution filters, SGD with Nesterov momentum for everything else.

    Args:
        params: parameters or groups of them.
        lr: of filters, see `FilterMuon`.
        momentum: of filters.
        steps: Newton-Schulz iterations.
        normalize: keep the norm of filters, see `FilterMuon`.
        linear_lr: of linear layers' matrices.
        bias_lr: of everything else, biases and norms above all.
        sgd_momentum: of both.
        weight_decay: of both: the share of a weight that a step at the peak learning rate takes away. Filters
            have none.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: Annotated[float, Range(above=0, high=1000)] = 0.1,
        momentum: Annotated[float, Range(0, 1)] = 0.6,
        steps: Annotated[int, Range(1, 100)] = 3,
        normalize: bool = True,
        linear_lr: Annotated[float, Range(above=0, high=1000)] = 0.1,
        bias_lr: Annotated[float, Range(above=0, high=1000)] = 0.1,
        sgd_momentum: Annotated[float, Range(0, 1)] = 0.9,
        weight_decay: Annotated[float, Range(0, 1000)] = 0.0,
    ) -> None:
        filters: ParameterGroups = []
        others: ParameterGroups = []
        for group in as_groups(params):
            members: list[Tensor] = list(group["params"])
            options = {key: value for key, value in group.items() if key != "params"}
            decay = options.pop("weight_decay", weight_decay)
            if chosen := [parameter for parameter in members if parameter.ndim == 4]:
                filters.append(options | {"params": chosen})
            if chosen := [parameter for parameter in members if parameter.ndim == 2]:
                own = {"params": chosen, "lr": linear_lr, "weight_decay": decay / linear_lr}
                others.append(options | own)
            if chosen := [parameter for parameter in members if parameter.ndim not in (2, 4)]:
                own = {"params": chosen, "lr": bias_lr, "weight_decay": decay / bias_lr}
                others.append(options | own)
        parts: dict[str, Optimizer] = {}
        if filters:
            parts["muon"] = FilterMuon(filters, lr=lr, momentum=momentum, steps=steps, normalize=normalize)
        if others:
            parts["sgd"] = torch.optim.SGD(others, momentum=sgd_momentum, nesterov=sgd_momentum > 0)
        super().__init__(parts, defaults={"lr": lr})
