"""Structured pruning: removal of channels.

The network becomes smaller and faster on any hardware. Zeroing single weights would not, since dense kernels
multiply by zeros as well.
"""

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from project.inference.export.torch_program import describe_error, quiet
from project.inference.export.wrapper import ExportError

POINTWISE = {
    "relu", "relu_", "gelu", "silu", "silu_", "hardswish", "hardswish_", "hardtanh", "hardtanh_", "tanh",
    "sigmoid", "leaky_relu", "dropout", "dropout_", "clone", "contiguous",
}  # fmt: skip
CHANNELWISE = {"feature_dropout", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"}
"""Operations on images that treat each channel separately."""
FLATTENING = {"flatten", "reshape", "view"}
LAYERS = (nn.Linear, nn.Conv2d)
NORMS = (nn.BatchNorm2d, nn.BatchNorm1d)
RIDGE = 1e-4
"""Regularization of the least-squares fit, relative to the channels' mean power."""


class Chain(NamedTuple):
    """A layer whose output channels are used by one other layer only."""

    producer: str
    norms: list[str]
    consumer: str


def prune(network: nn.Module, images: Tensor, fraction: float) -> nn.Module:
    """Return a copy of a network without the weakest channels of layers that feed only one other layer.

    Channels are ranked by the L1 norm of their weights (Li et al. 2017, arXiv 1608.08710, sec. 3.1). The next
    layer's weights are fitted by least squares on real images, so that the remaining channels replace the
    removed ones (He et al. 2017, arXiv 1707.06168, sec. 3.1, per channel).

    Args:
        network: the network.
        images: normalized training images (n, C, H, W).
        fraction: fraction of the channels to remove from each such layer.

    Raises:
        ExportError: the network has no such layers.
    """
    smaller = copy.deepcopy(network).eval()
    with quiet():
        try:
            traced = torch.export.export(smaller, (images[:2],), strict=False)
        except Exception as error:
            raise ExportError(f"torch.export cannot trace this network: {describe_error(error)}") from error
    chains = list(find_chains(traced, smaller))
    if not chains:
        raise ExportError("no layer feeds exactly one other layer, so no channel can be removed")
    with torch.no_grad():
        for chain in chains:
            _prune_chain(smaller, chain, images, fraction)
    return smaller


def find_chains(traced: torch.export.ExportedProgram, network: nn.Module) -> Iterator[Chain]:
    """Yield the layers whose channels can be removed, in the order of computation."""
    names = dict(traced.graph_signature.inputs_to_parameters)
    layers: dict[fx.Node, str] = {}
    norms: dict[fx.Node, str] = {}
    for node in traced.graph.nodes:
        operation = _operation(node)
        if operation in ("conv2d", "linear") and (name := _owner(node.args[1], names, network, LAYERS)):
            layers[node] = name
        elif (
            operation == "batch_norm"
            and (name := _owner(node.args[1], names, network, NORMS))
            and network.get_submodule(name).running_var is not None  # fixed statistics
        ):
            norms[node] = name
    for node, producer in layers.items():
        passed: list[str] = []
        before, current = node, _only_user(node)
        while current is not None and current.args[0] is before:
            if current in layers:
                if _matches(before, network.get_submodule(producer), network.get_submodule(layers[current])):
                    yield Chain(producer, passed, layers[current])
                break
            if current in norms:
                passed.append(norms[current])
            elif not _keeps_channels(
                current, is_image=isinstance(network.get_submodule(producer), nn.Conv2d)
            ):
                break
            before, current = current, _only_user(current)


def _prune_chain(network: nn.Module, chain: Chain, images: Tensor, fraction: float) -> None:
    """Remove channels of the producer and compensate in the consumer's weights."""
    producer: Any = network.get_submodule(chain.producer)
    consumer: Any = network.get_submodule(chain.consumer)
    norms: list[Any] = [network.get_submodule(name) for name in chain.norms]
    strength = producer.weight.flatten(1).abs().sum(dim=1)  # channels
    for norm in norms:
        gain = 1 if norm.weight is None else norm.weight
        strength = strength * (gain / (norm.running_var + norm.eps).sqrt()).abs()
    channels = len(strength)
    kept = strength.topk(max(1, channels - int(fraction * channels))).indices.sort().values
    moments = _moments(network, consumer, images, channels)
    chosen = moments[kept][:, kept]
    power = (
        chosen.diagonal().mean().clamp(min=torch.finfo(chosen.dtype).tiny / RIDGE)
    )  # not 0 for dead channels
    ridge = RIDGE * power * torch.eye(len(kept), dtype=moments.dtype)
    mixing = torch.linalg.solve(chosen + ridge, moments[kept])  # kept, channels
    weight = consumer.weight
    grouped = weight.reshape(len(weight), channels, -1).double()  # out, channels, positions
    mixed = torch.einsum("ocp,kc->okp", grouped, mixing)
    shape = (len(weight), -1, *weight.shape[2:])
    _set(consumer, weight=mixed.reshape(shape).to(weight.dtype))
    _set(producer, weight=producer.weight[kept], bias=_rows(producer.bias, kept))
    _resize(producer, outputs=len(kept))
    _resize(consumer, inputs=consumer.weight.shape[1])
    for norm in norms:
        _set(norm, weight=_rows(norm.weight, kept), bias=_rows(norm.bias, kept))
        norm.running_mean, norm.running_var = norm.running_mean[kept], norm.running_var[kept]
        norm.num_features = len(kept)


def _moments(network: nn.Module, consumer: nn.Module, images: Tensor, channels: int) -> Tensor:
    """Return the second moments (channels, channels) of a layer's input, float64."""
    total = torch.zeros(channels, channels, dtype=torch.double)

    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        taken = inputs[0].detach()
        if isinstance(consumer, nn.Linear):
            taken = taken.reshape(-1, channels, taken.shape[-1] // channels)
        rows = taken.flatten(2).transpose(0, 1).flatten(1).double()  # channels, n * positions
        total.addmm_(rows, rows.T)

    handle = consumer.register_forward_pre_hook(add)
    try:
        for batch in images.split(64):
            network(batch)
    finally:
        handle.remove()
    return total


def _owner(weight: Any, names: dict[str, str], network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> str:
    """Return the name of the weight's module if only one operation uses the weight, otherwise empty."""
    if not isinstance(weight, fx.Node) or len(weight.users) != 1:
        return ""
    name, _, attribute = names.get(weight.name, "").rpartition(".")
    plain = attribute == "weight" and isinstance(module := network.get_submodule(name), kinds)
    return name if plain and getattr(module, "groups", 1) == 1 else ""


def _matches(given: fx.Node, producer: Any, consumer: Any) -> bool:
    """Return True if the consumer's inputs are the producer's channels."""
    channels, inputs = producer.weight.shape[0], consumer.weight.shape[1]
    if isinstance(producer, nn.Conv2d) and isinstance(consumer, nn.Linear):
        return given.meta["val"].ndim == 2 and inputs % channels == 0  # flattened channel by channel
    return type(producer) is type(consumer) and bool(inputs == channels)


def _only_user(node: fx.Node) -> fx.Node | None:
    """Return the only operation that uses an output, or None."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op == "call_function" else None


def _keeps_channels(node: fx.Node, *, is_image: bool) -> bool:
    """Return True if an operation neither mixes nor reorders channels."""
    operation = _operation(node)
    if operation in FLATTENING and is_image:
        before, after = node.args[0].meta["val"].shape, node.meta["val"].shape  # type: ignore[union-attr]
        return len(after) == 2 and before[0] == after[0]
    return operation in POINTWISE or (is_image and operation in CHANNELWISE)


def _operation(node: fx.Node) -> str:
    return str(getattr(node.target, "_opname", "")) if node.op == "call_function" else ""


def _rows(values: Tensor | None, kept: Tensor) -> Tensor | None:
    return None if values is None else values[kept]


def _set(module: nn.Module, **values: Tensor | None) -> None:
    for name, value in values.items():
        parameter = None if value is None else nn.Parameter(value.clone(), requires_grad=False)
        setattr(module, name, parameter)


def _resize(layer: nn.Module, inputs: int | None = None, outputs: int | None = None) -> None:
    unit = "channels" if isinstance(layer, nn.Conv2d) else "features"
    if inputs is not None:
        setattr(layer, f"in_{unit}", inputs)
    if outputs is not None:
        setattr(layer, f"out_{unit}", outputs)
