"""A network as TensorBoard's graph: what it computes of one image, grouped by its modules.

Not by `torch.jit.trace`, on which torch's own `add_graph` is built: it is deprecated, takes seconds for large
networks, and fails on some. Here the network runs once, and each operation is noted as it is carried out.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from typing import Any

import torch
from tensorboard.compat.proto.attr_value_pb2 import AttrValue
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.node_def_pb2 import NodeDef
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.versions_pb2 import VersionDef
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MOST_NODES = 5000


class TooLargeError(RuntimeError):
    """The graph has more nodes than a browser lays out."""


def record_graph(network: nn.Module, run: Callable[[], Any], images: Tensor) -> GraphDef:
    """Record what a network computes.

    Args:
        network: whose modules are the groups.
        run: computes its answer to `images`, with the network not compiled.
        images: (B, C, H, W), the input.

    Raises:
        TooLargeError: there are more than `MOST_NODES` operations.
    """
    recorder = _Recorder(network)
    recorder.begin_with(images)
    with torch.inference_mode(), recorder.following_modules(), recorder:
        answer = run()
    recorder.end_with(answer)
    return GraphDef(node=_without_common_scope(recorder.nodes), versions=VersionDef(producer=22))


def _without_common_scope(nodes: list[NodeDef]) -> list[NodeDef]:
    """Leave out the modules that hold all operations, so that the page opens with what is within."""
    scopes = [node.name.split("/")[:-1] for node in nodes if "/" in node.name]
    alike = takewhile(lambda parts: len(set(parts)) == 1, zip(*scopes, strict=False))
    common = [parts[0] for parts in alike]
    first = {scope[len(common)] for scope in scopes if len(scope) > len(common)}
    if not common or first & {"images", "logits"}:
        return nodes
    length = sum(map(len, common)) + len(common)
    short = {node.name: node.name[length:] if "/" in node.name else node.name for node in nodes}
    for node in nodes:
        node.name = short[node.name]
        taken = [short[name] for name in node.input]
        del node.input[:]
        node.input.extend(taken)
    return nodes


class _Recorder(TorchDispatchMode):
    """Notes each operation as a node in the module that is running."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.nodes: list[NodeDef] = []
        self._scopes = [type(network).__name__]
        self._weights = {id(weight): name for name, weight in network.named_parameters()}
        self._weights |= {id(weight): name for name, weight in network.named_buffers()}
        self._makers: dict[int, str] = {}  # which node made a tensor
        self._alive: list[Tensor] = []  # so that no other tensor takes its identity
        self._used: dict[str, int] = {}

    def begin_with(self, images: Tensor) -> None:
        self._add("images", "input", [], images, scoped=False)

    def end_with(self, answer: Any) -> None:
        makers = [self._makers[id(leaf)] for leaf in tree_leaves(answer) if id(leaf) in self._makers]
        self._add("logits", "output", makers, answer, scoped=False)

    def _path(self, name: str) -> str:
        """A module's path; those that have numbers alone for names bear their class's too."""
        parts, path = name.split("."), []
        for end, part in enumerate(parts, 1):
            module = self.network.get_submodule(".".join(parts[:end]))
            path.append(f"{type(module).__name__}_{part}" if part.isdigit() else part)
        return "/".join(path)

    @contextmanager
    def following_modules(self) -> Iterator[None]:
        """Know which module is running."""

        def enter(scope: str) -> Callable[..., None]:
            return lambda *_: self._scopes.append(scope)

        def leave(*_: Any) -> None:
            self._scopes.pop()

        root = self._scopes[0]
        with ExitStack() as hooks:
            for name, module in self.network.named_modules():
                if not name:
                    continue
                scope = f"{root}/{self._path(name)}"
                for handle in (
                    module.register_forward_pre_hook(enter(scope)),
                    module.register_forward_hook(leave, always_call=True),
                ):
                    hooks.callback(handle.remove)
            yield

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        taken = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = func.__name__.partition(".")[0].strip("_")
        inputs = list(dict.fromkeys(self._makers[id(leaf)] for leaf in taken if id(leaf) in self._makers))
        weights = [
            f"{self._weights[id(leaf)]} {list(leaf.shape)}" for leaf in taken if id(leaf) in self._weights
        ]
        if inputs or weights:  # others make constants
            self._add(name, f"aten::{name}", inputs, result, weights)
        return result

    def _add(
        self,
        name: str,
        operation: str,
        inputs: list[str],
        result: Any,
        weights: list[str] | None = None,
        *,
        scoped: bool = True,
    ) -> None:
        if len(self.nodes) >= MOST_NODES:
            raise TooLargeError(f"more than {MOST_NODES} operations")
        place = f"{self._scopes[-1]}/{name}" if scoped else name
        number = self._used[place] = self._used.get(place, 0) + 1
        place = place if number == 1 else f"{place}_{number}"
        node = NodeDef(name=place, op=operation, input=inputs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        shapes = [
            TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in leaf.shape]) for leaf in made
        ]
        node.attr["_output_shapes"].CopyFrom(AttrValue(list=AttrValue.ListValue(shape=shapes)))
        if weights:
            node.attr["weights"].CopyFrom(AttrValue(s=", ".join(weights).encode()))
        self.nodes.append(node)
        for leaf in made:
            self._makers[id(leaf)] = place
        self._alive += made
