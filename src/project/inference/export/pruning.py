"""Structured pruning: whole channels are removed, so that the network is smaller and faster anywhere.

Zeroing single weights would make neither: dense kernels multiply by zeros as by anything else.
"""

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from project.inference.export.formats import ExportError
from project.inference.export.torch_program import quiet, shorten

POINTWISE = {
    "relu", "relu_", "gelu", "silu", "silu_", "hardswish", "hardswish_", "hardtanh", "hardtanh_", "tanh",
    "sigmoid", "leaky_relu", "dropout", "dropout_", "clone", "contiguous",
}  # fmt: skip
OF_PLANES = {"feature_dropout", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"}
"""Operations on images, each channel by itself."""
FLATTENING = {"flatten", "reshape", "view"}
LAYERS = (nn.Linear, nn.Conv2d)
NORMS = (nn.BatchNorm2d, nn.BatchNorm1d)
RIDGE = 1e-4
"""Of the least squares, in units of the channels' mean power."""


class Chain(NamedTuple):
    """A layer whose channels one other layer uses, and nothing else.

    Args:
        producer: name of the layer that makes the channels.
        norms: names of the batch norms that they pass.
        consumer: name of the layer that takes them.
    """

    producer: str
    norms: list[str]
    consumer: str


def prune(network: nn.Module, images: Tensor, share: float) -> nn.Module:
    """Remove the weakest channels of layers whose output goes to one other layer alone.

    A layer's channels are ranked by the L1 norm of their weights (Li et al. 2017, arXiv 1608.08710, sec.
    3.1). The next layer's weights are changed such that the channels that stay stand for those that go, by
    least squares on real images (as He et al. 2017, arXiv 1707.06168, sec. 3.1, channel by channel).

    Args:
        network: is copied.
        images: normalized training images (n, C, H, W).
        share: of the channels of each such layer that goes.

    Returns:
        The smaller network.

    Raises:
        ExportError: the network has no such layers.
    """
    smaller = copy.deepcopy(network).eval()
    with quiet():
        try:
            traced = torch.export.export(smaller, (images[:2],), strict=False)
        except Exception as error:
            raise ExportError(f"torch.export cannot trace this network: {shorten(error)}") from error
    chains = list(find_chains(traced, smaller))
    if not chains:
        raise ExportError("no layer's channels go to one other layer alone: there is nothing to remove")
    with torch.no_grad():
        for chain in chains:
            _shorten(smaller, chain, images, share)
    return smaller


def find_chains(traced: torch.export.ExportedProgram, network: nn.Module) -> Iterator[Chain]:
    """Find layers whose channels can be removed, in the order of the computation."""
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
            and network.get_submodule(name).running_var is not None  # else each batch has its own statistics
        ):
            norms[node] = name
    for node, producer in layers.items():
        passed: list[str] = []
        before, current = node, _only_user(node)
        while current is not None and current.args[0] is before:
            if current in layers:
                if _takes(before, network.get_submodule(producer), network.get_submodule(layers[current])):
                    yield Chain(producer, passed, layers[current])
                break
            if current in norms:
                passed.append(norms[current])
            elif not _passes(current, of_planes=isinstance(network.get_submodule(producer), nn.Conv2d)):
                break
            before, current = current, _only_user(current)


def _shorten(network: nn.Module, chain: Chain, images: Tensor, share: float) -> None:
    """Remove channels of one layer, and make up for them in the next."""
    producer: Any = network.get_submodule(chain.producer)
    consumer: Any = network.get_submodule(chain.consumer)
    norms: list[Any] = [network.get_submodule(name) for name in chain.norms]
    strength = producer.weight.flatten(1).abs().sum(dim=1)  # channels
    for norm in norms:
        gain = 1 if norm.weight is None else norm.weight
        strength = strength * (gain / (norm.running_var + norm.eps).sqrt()).abs()
    channels = len(strength)
    kept = strength.topk(max(1, channels - int(share * channels))).indices.sort().values
    moments = _moments(network, consumer, images, channels)
    chosen = moments[kept][:, kept]
    power = chosen.diagonal().mean().clamp(min=torch.finfo(chosen.dtype).tiny / RIDGE)  # 0 if all are dead
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
    """Second moments (channels, channels) of what a layer takes, float64."""
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
    """Name of the module, of these kinds, whose weight one operation alone has; empty if it is none."""
    if not isinstance(weight, fx.Node) or len(weight.users) != 1:
        return ""
    name, _, attribute = names.get(weight.name, "").rpartition(".")
    plain = attribute == "weight" and isinstance(module := network.get_submodule(name), kinds)
    return name if plain and getattr(module, "groups", 1) == 1 else ""


def _takes(given: fx.Node, producer: Any, consumer: Any) -> bool:
    """Whether a layer's channels are where the next one looks for them."""
    channels, inputs = producer.weight.shape[0], consumer.weight.shape[1]
    if isinstance(producer, nn.Conv2d) and isinstance(consumer, nn.Linear):
        return given.meta["val"].ndim == 2 and inputs % channels == 0  # flattened, a channel after the other
    return type(producer) is type(consumer) and bool(inputs == channels)


def _only_user(node: fx.Node) -> fx.Node | None:
    """The one operation that uses an output; None if there are none or several."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op == "call_function" else None


def _passes(node: fx.Node, *, of_planes: bool) -> bool:
    """Whether an operation leaves the channels apart and in their order.

    Args:
        node: the operation.
        of_planes: the channels are planes of images (B, C, H, W), not the last axis.
    """
    operation = _operation(node)
    if operation in FLATTENING and of_planes:
        before, after = node.args[0].meta["val"].shape, node.meta["val"].shape  # type: ignore[union-attr]
        return len(after) == 2 and before[0] == after[0]
    return operation in POINTWISE or (of_planes and operation in OF_PLANES)


def _operation(node: fx.Node) -> str:
    return str(getattr(node.target, "_opname", "")) if node.op == "call_function" else ""


def _rows(values: Tensor | None, kept: Tensor) -> Tensor | None:
    return None if values is None else values[kept]


def _set(module: nn.Module, **values: Tensor | None) -> None:
    """Give a module other weights."""
    for name, value in values.items():
        parameter = None if value is None else nn.Parameter(value.clone(), requires_grad=False)
        setattr(module, name, parameter)


def _resize(layer: nn.Module, inputs: int | None = None, outputs: int | None = None) -> None:
    """Tell a layer how many channels it has by now."""
    first, second = (
        ("in_channels", "out_channels")
        if isinstance(layer, nn.Conv2d)
        else (
            "in_features",
            "out_features",
        )
    )
    for attribute, number in ((first, inputs), (second, outputs)):
        if number is not None:
            setattr(layer, attribute, number)
