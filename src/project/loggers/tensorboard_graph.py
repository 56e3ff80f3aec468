"""TensorBoard graph of a network: the operations for one image, grouped by module.

The network runs once while its operations are recorded. torch's `add_graph` is not used, because it needs
`torch.jit.trace`, which is deprecated, takes seconds for large networks, and fails for some.
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

MAX_NODES = 5000
"""Maximum number of nodes that browsers can lay out."""


def record_graph(network: nn.Module, run: Callable[[], Any], images: Tensor) -> GraphDef:
    """Record the operations of a network's forward pass as a graph.

    Args:
        network: network whose modules group the operations.
        run: returns the network's output for `images`.
        images: input (B, C, H, W).

    Raises:
        RuntimeError: there are more than `MAX_NODES` operations.
    """
    recorder = _Recorder(network)
    recorder.add("images", "input", [], images)
    with torch.inference_mode(), recorder.following_modules(), recorder:
        logits = run()
    recorder.add("logits", "output", recorder.sources(tree_leaves(logits)), logits)
    return GraphDef(node=_strip_common_scope(recorder.nodes), versions=VersionDef(producer=22))


class _Recorder(TorchDispatchMode):
    """Records each operation as a node in the scope of the running module."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.nodes: list[NodeDef] = []
        self._scopes = [type(network).__name__]
        self._weights = {id(weight): name for name, weight in network.named_parameters()}
        self._weights |= {id(weight): name for name, weight in network.named_buffers()}
        self._sources: dict[int, str] = {}  # id of a result: name of its node
        self._alive: list[Tensor] = []  # keeps ids unique
        self._counts: dict[str, int] = {}

    @contextmanager
    def following_modules(self) -> Iterator[None]:
        """Track the running module by forward hooks."""

        def enter(scope: str) -> Callable[..., None]:
            return lambda *_: self._scopes.append(scope)

        def leave(*_: Any) -> None:
            self._scopes.pop()

        root = self._scopes[0]
        with ExitStack() as hooks:
            for name, module in self.network.named_modules():
                if name:
                    before = module.register_forward_pre_hook(enter(f"{root}/{self._path(name)}"))
                    hooks.callback(before.remove)
                    hooks.callback(module.register_forward_hook(leave, always_call=True).remove)
            yield

    def _path(self, name: str) -> str:
        """Return the path of a module, with class names before numbers."""
        parts, path = name.split("."), []
        for end, part in enumerate(parts, 1):
            module = self.network.get_submodule(".".join(parts[:end]))
            path.append(f"{type(module).__name__}_{part}" if part.isdigit() else part)
        return "/".join(path)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = tree_leaves((args, kwargs))
        name = func.__name__.partition(".")[0].strip("_")
        weights = [
            f"{self._weights[id(leaf)]} {list(leaf.shape)}" for leaf in inputs if id(leaf) in self._weights
        ]
        sources = self.sources(inputs)
        if sources or weights:  # other operations create constants
            self.add(f"{self._scopes[-1]}/{name}", f"aten::{name}", sources, result, weights)
        return result

    def sources(self, leaves: list[Any]) -> list[str]:
        """Return the names of the nodes that computed the tensors among `leaves`."""
        return list(dict.fromkeys(self._sources[id(leaf)] for leaf in leaves if id(leaf) in self._sources))

    def add(
        self, name: str, operation: str, inputs: list[str], result: Any, weights: list[str] | None = None
    ) -> None:
        """Add a node under a unique name."""
        if len(self.nodes) >= MAX_NODES:
            raise RuntimeError(f"more than {MAX_NODES} operations")
        number = self._counts[name] = self._counts.get(name, 0) + 1
        name = name if number == 1 else f"{name}_{number}"
        node = NodeDef(name=name, op=operation, input=inputs)
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        dims = [[TensorShapeProto.Dim(size=size) for size in tensor.shape] for tensor in tensors]
        shapes = AttrValue.ListValue(shape=[TensorShapeProto(dim=each) for each in dims])
        node.attr["_output_shapes"].CopyFrom(AttrValue(list=shapes))
        if weights:
            node.attr["weights"].CopyFrom(AttrValue(s=", ".join(weights).encode()))
        self.nodes.append(node)
        self._sources |= {id(tensor): name for tensor in tensors}
        self._alive += tensors


def _strip_common_scope(nodes: list[NodeDef]) -> list[NodeDef]:
    """Remove scopes that contain all operations, so that the page shows their children at first."""
    scopes = [node.name.split("/")[:-1] for node in nodes if "/" in node.name]
    equal = takewhile(lambda parts: len(set(parts)) == 1, zip(*scopes, strict=False))
    common = [parts[0] for parts in equal]
    first = {scope[len(common)] for scope in scopes if len(scope) > len(common)}
    if not common or first & {"images", "logits"}:
        return nodes
    length = sum(map(len, common)) + len(common)
    short = {node.name: node.name[length:] if "/" in node.name else node.name for node in nodes}
    for node in nodes:
        node.name = short[node.name]
        inputs = [short[name] for name in node.input]
        del node.input[:]
        node.input.extend(inputs)
    return nodes
