"""Muon, which orthogonalizes the momentum of matrices, combined with AdamW or SGD for other parameters."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from project.modules.optim.parameter_groups import ParameterGroups, as_groups
from project.runtime.bounds import Range

NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic Newton-Schulz iteration (Jordan 2024, kellerjordan.github.io/posts/muon).

The polynomial is steep at 0, so that few iterations bring singular values near 1.
"""


class CombinedOptimizer(Optimizer):
    """Combines several optimizers into one for schedules and checkpoints.

    Args:
        parts: optimizers by name, with disjoint parameters.
        defaults: default options, as for `torch.optim.Optimizer`.
    """

    def __init__(self, parts: Mapping[str, Optimizer], defaults: dict[str, Any]) -> None:
        self._parts = dict(parts)
        groups = [dict(group, optimizer=name) for name, part in parts.items() for group in part.param_groups]
        super().__init__(groups, defaults)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = _call_with_grad(closure)
        for name, part in self._parts.items():
            # Schedules and checkpoints change the groups and state of this object.
            part.param_groups = [group for group in self.param_groups if group["optimizer"] == name]
            part.state = self.state
            part.step()
        return loss


class Muon(CombinedOptimizer):
    """`torch.optim.Muon` for matrices, `torch.optim.AdamW` for all other parameters.

    Muon orthogonalizes the momentum of a matrix (Jordan 2024). Its update is scaled to the RMS of AdamW's
    update (Liu et al. 2025, arXiv 2502.16982, sec. 2.2), so that both share `lr` and `weight_decay`. AdamW
    optimizes all parameters that do not have two dimensions, such as convolution filters and biases.

    Args:
        params: parameters or parameter groups.
        lr: peak learning rate of both optimizers.
        weight_decay: decoupled weight decay of both optimizers.
        momentum: momentum of Muon.
        betas: betas of AdamW.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: Annotated[float, Range(above=0, high=1000)] = 1e-3,
        weight_decay: Annotated[float, Range(0, 1000)] = 0.1,
        momentum: Annotated[float, Range(0, 1)] = 0.95,
        betas: Annotated[tuple[float, float], Range(0, below=1)] = (0.9, 0.95),
    ) -> None:
        matrix_options = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        other_options = {"lr": lr, "weight_decay": weight_decay, "betas": betas}
        matrices: ParameterGroups = []
        others: ParameterGroups = []
        for group in as_groups(params):
            members = list(group["params"])
            if chosen := [parameter for parameter in members if parameter.ndim == 2]:
                matrices.append(matrix_options | group | {"params": chosen})
            if chosen := [parameter for parameter in members if parameter.ndim != 2]:
                others.append(other_options | group | {"params": chosen})
        parts: dict[str, Optimizer] = {}
        if matrices:
            parts["muon"] = torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw")
        if others:
            parts["adamw"] = torch.optim.AdamW(others)
        super().__init__(parts, defaults={"lr": lr, "weight_decay": weight_decay})


class FilterMuon(Optimizer):
    """Muon (Jordan 2024) for convolution filters, as matrices with one row per output channel.

    Filters of equal shape are orthogonalized together, in bfloat16 on a GPU and in their own precision on a
    CPU, without synchronizing with the device.

    Args:
        params: parameters or parameter groups, of two or more dimensions.
        lr: change of a filter's singular values per step.
        momentum: factor of the momentum buffer per step.
        nesterov: if True, use Nesterov momentum.
        steps: number of Newton-Schulz iterations.
        normalize: if True, scale the norm of each parameter to the square root of its number of output
            channels before each step, so that the relative step size is the same for all parameters.
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
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "steps": steps}
        defaults["normalize"] = normalize
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = _call_with_grad(closure)
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._update_same_shape(parameters, group)
        return loss

    def _update_same_shape(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Update parameters of one shape (O, ...), where O is the number of output channels."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        sums = [self._momentum_buffer(parameter) for parameter in parameters]
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
            torch._foreach_clamp_min_(
                norms, torch.finfo(norms[0].dtype).tiny
            )  # a filter may consist of zeros
            torch._foreach_div_(parameters, norms)
        shaped = [change.view(parameters[0].shape) for change in changes]
        torch._foreach_add_(parameters, shaped, alpha=-group["lr"])

    def _momentum_buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


class MuonSGD(CombinedOptimizer):
    """Muon for convolution filters, SGD with Nesterov momentum for all other parameters.

    Args:
        params: parameters or parameter groups.
        lr: learning rate of filters (see `FilterMuon`).
        momentum: momentum of filters.
        steps: number of Newton-Schulz iterations.
        normalize: if True, normalize filters before each step (see `FilterMuon`).
        linear_lr: learning rate of matrices, that is, of linear layers.
        bias_lr: learning rate of all other parameters, such as biases and normalization parameters.
        sgd_momentum: momentum of SGD.
        weight_decay: fraction by which SGD shrinks a weight per step at the peak learning rate; filters have
            no weight decay.
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


def orthogonalize(matrices: Tensor, steps: int, eps: float = 1e-7) -> Tensor:
    """Bring singular values of matrices (..., M, N) near 1 by Newton-Schulz (0.7 to 1.2 after 5 steps)."""
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    current = matrices.mT if is_tall else matrices  # the smaller of the two Gram matrices
    current = current / (current.norm(dim=(-2, -1), keepdim=True) + eps)
    for _ in range(steps):
        gram = current @ current.mT
        current = a * current + (b * gram + c * gram @ gram) @ current
    return current.mT if is_tall else current


def _call_with_grad(closure: Callable[[], float] | None) -> float | None:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
