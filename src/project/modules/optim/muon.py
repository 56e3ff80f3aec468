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
"""Of the quintic iteration (Jordan 2024, kellerjordan.github.io/posts/muon): steep at 0, so that a few steps
bring singular values near 1.
"""


class CombinedOptimizer(Optimizer):
    """Several optimizers that step together, and are one to schedules and checkpoints.

    Args:
        parts: optimizers by name, of disjoint parameters.
        defaults: as of `torch.optim.Optimizer`.
    """

    def __init__(self, parts: Mapping[str, Optimizer], defaults: dict[str, Any]) -> None:
        self._parts = dict(parts)
        groups = [dict(group, optimizer=name) for name, part in parts.items() for group in part.param_groups]
        super().__init__(groups, defaults)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = _call_with_grad(closure)
        for name, part in self._parts.items():
            # Groups and state live here, where schedules change them and checkpoints restore them.
            part.param_groups = [group for group in self.param_groups if group["optimizer"] == name]
            part.state = self.state
            part.step()
        return loss


class Muon(CombinedOptimizer):
    """`torch.optim.Muon` for matrices, `torch.optim.AdamW` for all else, as one optimizer.

    Muon orthogonalizes the momentum of a matrix (Jordan 2024). Its step is scaled to the size of AdamW's (Liu
    et al. 2025, arXiv 2502.16982, sec. 2.2), so that one `lr` and `weight_decay` serve both. Parameters of
    other than two dimensions, such as convolution filters and biases, go to AdamW.

    Args:
        params: parameters or groups of them.
        lr: peak learning rate of both.
        weight_decay: decoupled, of both.
        momentum: Muon's.
        betas: AdamW's.
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
    """Muon (Jordan 2024) on filters as matrices of one row per output channel.

    All filters of one shape are orthogonalized together, in bfloat16 on a GPU and in their own precision on a
    CPU. Nothing waits for the device.

    Args:
        params: parameters or groups of them, of two or more dimensions.
        lr: change of a filter's singular values per step.
        momentum: share of the sum of gradients that a step keeps.
        nesterov: look one step of the momentum ahead.
        steps: Newton-Schulz iterations.
        normalize: before each step, scale each parameter's norm to the root of its output channels, so that
            `lr` means the same for all parameters and throughout the training.
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
                self._step_shape(parameters, group)
        return loss

    def _step_shape(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Change parameters (O, ...) of one shape."""
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
            torch._foreach_clamp_min_(norms, torch.finfo(norms[0].dtype).tiny)  # a filter may be all zeros
            torch._foreach_div_(parameters, norms)
        shaped = [change.view(parameters[0].shape) for change in changes]
        torch._foreach_add_(parameters, shaped, alpha=-group["lr"])

    def _momentum_buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


class MuonSGD(CombinedOptimizer):
    """Muon for convolution filters, SGD with Nesterov momentum for all else.

    Args:
        params: parameters or groups of them.
        lr: of filters, see `FilterMuon`.
        momentum: of filters.
        steps: Newton-Schulz iterations.
        normalize: keep the norm of filters, see `FilterMuon`.
        linear_lr: of linear layers' matrices.
        bias_lr: of all else, biases and norms above all.
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


def orthogonalize(matrices: Tensor, steps: int, eps: float = 1e-7) -> Tensor:
    """Bring the singular values of matrices (..., M, N) near 1, by Newton-Schulz (0.7 to 1.2 in 5 steps)."""
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    current = matrices.mT if is_tall else matrices  # the smaller Gram matrix costs less
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
