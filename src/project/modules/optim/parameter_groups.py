"""Optimizer parameter groups by role, weight decay and depth."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from project.errors import InputError
from project.runtime.bounds import Range

ParameterGroups = list[dict[str, Any]]

MIN_LR_SCALE = torch.finfo(torch.float32).tiny
"""Minimum learning rate relative to the head's; smaller values underflow in single precision."""
CONTAINER_FRACTION = 0.8
"""Fraction of all parameters above which a module is assumed to hold several blocks."""


def parameter_groups(
    network: nn.Module,
    *,
    weight_decay_norm_bias: bool = True,
    layerwise_lr_decay: Annotated[float, Range(above=0, high=1)] = 1.0,
) -> ParameterGroups:
    """Return the trainable parameters of a network as optimizer parameter groups.

    If the network has a method `parameter_roles`, which returns lists of parameters by role, each role is a
    group with its name as `role`.

    Args:
        network: network whose frozen parameters are left out.
        weight_decay_norm_bias: if False, parameters of one dimension (biases and normalization parameters)
            form a group with `weight_decay` 0 [True].
        layerwise_lr_decay: below 1, each block of the network (see `parameter_blocks`) has groups of its own,
            the head's first, with an `lr_scale` for `scale_learning_rates`: 1 for the head,
            `layerwise_lr_decay` for the block before it, its square for the one before that, and so on
            (discriminative fine-tuning: Howard and Ruder 2018, arXiv 1801.06146, sec. 3.2; block by block:
            Clark et al. 2020, arXiv 2003.10555).

    Raises:
        InputError: the learning rate of the first block would underflow in single precision.
    """
    groups: ParameterGroups = []
    is_layerwise = layerwise_lr_decay != 1
    depths = list(reversed(parameter_blocks(network))) if is_layerwise else [list(network.parameters())]
    for role, members in _parameters_by_role(network).items():
        for depth, block in enumerate(depths):
            options: dict[str, Any] = {"role": role} if role else {}
            if is_layerwise:
                options["lr_scale"] = layerwise_lr_decay**depth
            here = {id(parameter) for parameter in block if parameter.requires_grad}
            parameters = [parameter for parameter in members if id(parameter) in here]
            if weight_decay_norm_bias:
                groups.append({"params": parameters} | options)
                continue
            matrices = [parameter for parameter in parameters if parameter.ndim > 1]
            vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
            groups += [{"params": matrices} | options, {"params": vectors, "weight_decay": 0.0} | options]
    groups = [group for group in groups if group["params"]]
    if min((group.get("lr_scale", 1.0) for group in groups), default=1.0) < MIN_LR_SCALE:
        least = math.ceil(100 * MIN_LR_SCALE ** (1 / (len(depths) - 1))) / 100
        raise InputError(
            f"optim.layerwise_lr_decay={layerwise_lr_decay}: the learning rate of the first of {len(depths)} "
            f"blocks would be 0; set at least {least:g}, or train only the head for some epochs "
            "(callbacks.freeze_backbone.epochs)"
        )
    return groups


def scale_learning_rates(optimizer: Optimizer) -> None:
    """Multiply the learning rate of each group by its `lr_scale`, and store it as `initial_lr`.

    Call this function after the optimizer is built: its constructor sets the learning rates of the groups.
    """
    for group in optimizer.param_groups:
        group["lr"] *= group.get("lr_scale", 1.0)
        group.setdefault("initial_lr", group["lr"])  # schedules that start lower overwrite it


def as_groups(params: Iterable[Tensor] | Iterable[dict[str, Any]]) -> ParameterGroups:
    """Return parameters or parameter groups as a list of groups."""
    entries = list(params)
    if entries and isinstance(entries[0], dict):
        return entries  # type: ignore[return-value]
    return [{"params": entries}]


def _parameters_by_role(network: nn.Module) -> Mapping[str, list[Tensor]]:
    """Return parameters by role; parameters without a role are under ""."""
    named: Mapping[str, list[Tensor]] = getattr(network, "parameter_roles", dict)()
    taken = [id(parameter) for members in named.values() for parameter in members]
    assert len(taken) == len(set(taken)), "a parameter has two roles"
    rest: list[Tensor] = [parameter for parameter in network.parameters() if id(parameter) not in set(taken)]
    return {**named, "": rest}


def parameter_blocks(network: nn.Module) -> list[list[nn.Parameter]]:
    """Split the parameters of a network into blocks, in order from the input to the head.

    The order of blocks is the registration order of modules. Containers are split: sequences of modules,
    modules with nearly all parameters of the network, and stages, which consist of a downsampling layer and a
    sequence of blocks. Every other module is a block, such as a residual
    block, a transformer layer, a stem convolution, or the head's linear layer. Normalization layers belong to
    the block before them. Parameters of a container itself, such as a position embedding, belong to the first
    block.

    Args:
        network: network whose modules are registered in the order of their use.

    Returns:
        Nonempty lists of parameters; the last list is the head.
    """
    total = sum(parameter.numel() for parameter in network.parameters())
    loose: list[nn.Parameter] = []
    found: list[list[nn.Parameter]] = [[]]
    seen: set[nn.Parameter] = set()  # a shared parameter belongs to its first use
    for module in _unsplit_modules(network, total, loose):
        new = [parameter for parameter in module.parameters() if parameter not in seen]
        seen |= set(new)
        if found[-1] and any(parameter.ndim > 1 for parameter in new):
            found.append([])
        found[-1] += new
    found[0] = [parameter for parameter in loose if parameter not in seen] + found[0]
    return [block for block in found if block]


def _unsplit_modules(module: nn.Module, total: int, loose: list[nn.Parameter]) -> Iterator[nn.Module]:
    """Yield the modules that are not split; add the direct parameters of split modules to `loose`."""
    size = sum(parameter.numel() for parameter in module.parameters())
    children = [child for child in module.children() if any(True for _ in child.parameters())]
    is_container = _is_sequence(module, children) or size > CONTAINER_FRACTION * total
    if not children or not (is_container or any(map(_has_blocks, children))):
        yield module
        return
    loose.extend(module.parameters(recurse=False))
    for child in children:
        yield from _unsplit_modules(child, total, loose)


def _is_sequence(module: nn.Module, children: list[nn.Module]) -> bool:
    # A subclass of Sequential may be a block, unless all its children have the same type.
    are_alike = len(children) > 1 and len({type(child) for child in children}) == 1
    return type(module) in (nn.Sequential, nn.ModuleList) or (are_alike and isinstance(module, nn.Sequential))


def _has_blocks(module: nn.Module) -> bool:
    """Return True for a sequence of several modules of the same type that are not plain layers."""
    parts = list(module.children())
    if type(module) not in (nn.Sequential, nn.ModuleList) or len({type(part) for part in parts}) != 1:
        return False
    # A sequence in a sequence is part of a block, such as convolution, normalization and activation.
    return (
        len(parts) > 1 and not isinstance(parts[0], nn.Sequential) and any(True for _ in parts[0].children())
    )
