"""Parameter groups, and optimizers that are made of two."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from project.errors import InputError
from project.modules.networks.blocks import blocks
from project.runtime.bounds import Range

ParameterGroups = list[dict[str, Any]]

LEAST_SCALE = torch.finfo(torch.float32).tiny
"""Of a group's learning rate, in units of the head's: below, single precision loses it."""


def parameter_groups(
    network: nn.Module, *, decay_norms_and_biases: bool, layer_decay: float = 1.0
) -> ParameterGroups:
    """Trainable parameters of `network` as optimizer groups.

    A network may have a method `parameter_roles`, which returns lists of parameters by the name of what
    they do. Each role is a group then, with its name as `role`.

    Args:
        network: whose parameters are optimized; frozen ones are left out.
        decay_norms_and_biases: if false, parameters of one dimension (biases, gains and offsets of
            norms) form a group with `weight_decay` 0.
        layer_decay: below 1, each block of the network (see `blocks`) has groups of its own, the head's
            first, with `lr_scale`, by which `scale_learning_rates` multiplies the learning rate: 1 for the
            head, `layer_decay` for the block before it, its square for the one before that, and so on
            (discriminative fine-tuning: Howard and Ruder 2018, arXiv 1801.06146, sec. 3.2; block by block:
            Clark et al. 2020, arXiv 2003.10555).

    Raises:
        InputError: `layer_decay` leaves the first blocks no learning rate that single precision can hold.
    """
    groups: ParameterGroups = []
    depths = [list(network.parameters())] if layer_decay == 1 else list(reversed(blocks(network)))
    for name, members in _roles(network).items():
        for depth, block in enumerate(depths):
            options: dict[str, Any] = {"role": name} if name else {}
            if layer_decay != 1:
                options["lr_scale"] = layer_decay**depth
            here = {id(parameter) for parameter in block if parameter.requires_grad}
            parameters = [parameter for parameter in members if id(parameter) in here]
            if decay_norms_and_biases:
                groups.append({"params": parameters} | options)
                continue
            matrices = [parameter for parameter in parameters if parameter.ndim > 1]
            vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
            groups += [{"params": matrices} | options, {"params": vectors, "weight_decay": 0.0} | options]
    groups = [group for group in groups if group["params"]]
    if min((group.get("lr_scale", 1.0) for group in groups), default=1.0) < LEAST_SCALE:
        least = math.ceil(100 * LEAST_SCALE ** (1 / (len(depths) - 1))) / 100
        raise InputError(
            f"layer_decay={layer_decay}: of {len(depths)} blocks the first would not learn at all; set at "
            f"least {least:g}, or train the head alone for some epochs (callbacks.freeze.epochs)"
        )
    return groups


def scale_learning_rates(optimizer: Optimizer) -> None:
    """Multiply the learning rate of each group by its `lr_scale`, and note it as `initial_lr`.

    After the optimizer is made: until then only the optimizer knows the rate of each group.
    """
    for group in optimizer.param_groups:
        group["lr"] *= group.get("lr_scale", 1.0)
        group.setdefault("initial_lr", group["lr"])  # whatever the schedule; one that begins lower says so


def _roles(network: nn.Module) -> Mapping[str, list[Tensor]]:
    """Parameters by role; those of a network that names no roles, or leaves some out, have none: ``""``."""
    named: Mapping[str, list[Tensor]] = getattr(network, "parameter_roles", dict)()
    taken = [id(parameter) for members in named.values() for parameter in members]
    assert len(taken) == len(set(taken)), "a parameter has two roles"
    rest: list[Tensor] = [parameter for parameter in network.parameters() if id(parameter) not in set(taken)]
    return {**named, "": rest}


class Combined(Optimizer):
    """Several optimizers that step together, and are one to schedules and checkpoints.

    Args:
        parts: by name; each has its own parameters.
        defaults: see `torch.optim.Optimizer`.
    """

    def __init__(self, parts: Mapping[str, Optimizer], defaults: dict[str, Any]) -> None:
        self._parts = dict(parts)
        groups = [dict(group, optimizer=name) for name, part in parts.items() for group in part.param_groups]
        super().__init__(groups, defaults)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step of each; return the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, part in self._parts.items():
            # Groups and state live here, where schedules change them and checkpoints restore them.
            part.param_groups = [group for group in self.param_groups if group["optimizer"] == name]
            part.state = self.state
            part.step()
        return loss


class Muon(Combined):
    """`torch.optim.Muon` for matrices, `torch.optim.AdamW` for everything else, as one optimizer.

    Muon orthogonalizes the momentum of a matrix (Jordan 2024). Its step is scaled to the size of
    AdamW's (Liu et al. 2025, arXiv 2502.16982, sec. 2.2), so one `lr` and `weight_decay` serve both.
    Convolution filters, biases, norms and embeddings of other than two dimensions go to AdamW.

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
            group_params = list(group["params"])
            if chosen := [parameter for parameter in group_params if parameter.ndim == 2]:
                matrices.append(matrix_options | group | {"params": chosen})
            if chosen := [parameter for parameter in group_params if parameter.ndim != 2]:
                others.append(other_options | group | {"params": chosen})
        parts: dict[str, Optimizer] = {}
        if matrices:
            parts["muon"] = torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw")
        if others:
            parts["adamw"] = torch.optim.AdamW(others)
        super().__init__(parts, defaults={"lr": lr, "weight_decay": weight_decay})


def as_groups(params: Iterable[Tensor] | Iterable[dict[str, Any]]) -> ParameterGroups:
    """Parameters, or groups of them, as groups."""
    entries = list(params)
    if entries and isinstance(entries[0], dict):
        return entries  # type: ignore[return-value]
    return [{"params": entries}]
