"""Lazy imports of heavy modules, and imports without garbage collection.

A training run uses less than half of the modules that `import lightning` imports. The modules in `LAZY` are
imported when one of their names is first used:

- `torch._dynamo`, with sympy and half of torch. Lightning names one of its classes, and optimizers exclude
  their methods from compilation, which has no effect before something is compiled.
- `torch._inductor.config`, with triton: `torch.use_deterministic_algorithms` sets one of its options.
- `torch.utils.flop_counter`, with triton: Lightning's model summary can count operations.
- `torchmetrics`, with all metrics and torchvision; Lightning and our metrics need only the base classes.
- `torchmetrics.utilities.plot`, with matplotlib: for `Metric.plot`.
- Lightning's `RichProgressBar`, with rich: for configurations that use it.

The standard library's `importlib.util.LazyLoader` does this for `import module`. Here some names also have
placeholders, so that `from module import name` does not import the module. Submodules that do not need their
package are imported without it. If a library uses other names, the start only takes longer.
`PROJECT_LAZY_IMPORTS=0` switches this off. Tested with torch 2.11, lightning 2.6, torchmetrics 1.9.
"""

import atexit
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from threading import RLock
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Importing it takes longer than this module, and Python needs no base class for loaders and finders.
    from importlib.abc import Loader, MetaPathFinder
else:
    Loader = MetaPathFinder = object

DYNAMO = "torch._dynamo"
FLOPS = "torch.utils.flop_counter"
PLOT = "torchmetrics.utilities.plot"
RICH = "lightning.pytorch.callbacks.progress.rich_progress"
PROBED = frozenset({"__path__", "__warningregistry__", "__wrapped__"})
"""Names that Python and tools look up in every module; a pending module does not define them."""

_gc_frozen = False
_exclude_now: list[Callable[[], None]] = []
"""Calls that exclude functions from compilation, to be made when Dynamo is imported."""


@dataclass(frozen=True)
class Deferral:
    """Description of a lazy import of one module.

    Args:
        placeholders: yields pairs of name and placeholder. Submodules imported meanwhile find earlier names.
        submodules: names of submodules that do not need the module.
        after: called after the import of the module.
    """

    placeholders: Callable[[], Iterable[tuple[str, Any]]] = tuple
    submodules: frozenset[str] = frozenset()
    after: Callable[[], object] = lambda: None


class LazyModule(ModuleType):
    """Pending module, which is imported when a name without a placeholder is used.

    Values assigned to the pending module, such as options, are assigned again after the import.
    """

    def __getattr__(self, name: str) -> Any:
        if name in PROBED and is_pending(self):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        load(self)
        return ModuleType.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        loader = _lazy_loader(self)
        if loader is not None and not isinstance(value, ModuleType):  # modules are submodules
            loader.assigned[name] = value
        ModuleType.__setattr__(self, name, value)


class Placeholder:
    """Placeholder of a class or function, whose module is imported when it is called or subclassed.

    While the module is pending, no object is an instance of the class.
    """

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _load(self) -> Any:
        module = import_module(self._module)
        load(module)
        return getattr(module, self._name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._load()(*arguments, **options)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (self._load(),)

    def __instancecheck__(self, instance: object) -> bool:
        return not is_pending(sys.modules.get(self._module)) and isinstance(instance, self._load())

    def __subclasscheck__(self, subclass: type) -> bool:
        return not is_pending(sys.modules.get(self._module)) and issubclass(subclass, self._load())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # tools look up such names
            raise AttributeError(name)
        return getattr(self._load(), name)


class LazyLoader(Loader):
    """Loader that makes a pending module and keeps the real loader."""

    def __init__(self, real: Loader, deferral: Deferral) -> None:
        self.real = real
        self.deferral = deferral
        self.lock = RLock()
        self.placeholders: dict[str, Any] = {}
        self.assigned: dict[str, Any] = {}

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        for name, value in self.deferral.placeholders():
            vars(module)[name] = self.placeholders[name] = value
        module.__class__ = LazyModule


class PresentLoader(Loader):
    """Loader of a module that was imported while Python searched for it."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.spec = module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


class LazyFinder(MetaPathFinder):
    """Finder of the modules to be imported lazily, by their full names."""

    def __init__(self, deferrals: Mapping[str, Deferral]) -> None:
        self.deferrals = deferrals

    def find_spec(
        self, fullname: str, path: Iterable[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in self.deferrals:
            spec = PathFinder.find_spec(fullname, None if path is None else list(path))
            if spec is not None and spec.loader is not None:
                spec.loader = LazyLoader(spec.loader, self.deferrals[fullname])
            return spec
        parent, _, name = fullname.rpartition(".")
        package = sys.modules.get(parent)
        loader = None if package is None else _lazy_loader(package)
        if package is None or loader is None or name in loader.deferral.submodules:
            return None
        load(package)
        present = sys.modules.get(fullname)
        return ModuleSpec(fullname, PresentLoader(present)) if present is not None else None


def is_pending(module: ModuleType | None) -> bool:
    """Return True for a module that is not imported yet."""
    return module is not None and _lazy_loader(module) is not None


def load(module: ModuleType) -> None:
    """Import a pending module, after its package; do nothing for other modules."""
    package = sys.modules.get(module.__name__.rpartition(".")[0])
    if is_pending(module) and package is not None:
        load(package)
    if (loader := _lazy_loader(module)) is None:
        return
    spec = module.__spec__
    assert spec is not None
    with loader.lock:
        if spec.loader is not loader:  # another thread imported it meanwhile
            return
        for name in loader.placeholders:
            vars(module).pop(name, None)
        spec.loader = module.__loader__ = loader.real
        try:
            loader.real.exec_module(module)
        except BaseException:
            spec.loader = module.__loader__ = loader
            vars(module).update(loader.placeholders)
            raise
        if module.__class__ is LazyModule:  # the module may have set another class
            module.__class__ = ModuleType  # type: ignore[assignment]
        for name, value in loader.assigned.items():
            setattr(module, name, value)
        loader.deferral.after()


def _lazy_loader(module: ModuleType) -> LazyLoader | None:
    loader = getattr(vars(module).get("__spec__"), "loader", None)
    return loader if isinstance(loader, LazyLoader) else None


def _dynamo_placeholders() -> Iterator[tuple[str, Any]]:
    yield "OptimizedModule", Placeholder(DYNAMO, "OptimizedModule")
    yield "disable", _disable
    yield "graph_break", _graph_break


def _disable(function: Any = None, *arguments: Any, **options: Any) -> Any:
    """Replace `torch._dynamo.disable`: return the function, and exclude it once Dynamo is imported."""
    if function is None:
        return lambda function: _disable(function, *arguments, **options)
    if not isinstance(function, FunctionType):  # Dynamo changes classes and networks in place
        load(sys.modules[DYNAMO])
        return sys.modules[DYNAMO].disable(function, *arguments, **options)
    called: Callable[..., Any] = function

    @wraps(function)
    def disabled(*args: Any, **kwargs: Any) -> Any:
        return called(*args, **kwargs)

    def exclude() -> None:
        nonlocal called
        called = sys.modules[DYNAMO].disable(function, *arguments, **options)

    _exclude_now.append(exclude)
    return disabled


def _graph_break(message: str = "") -> None:
    """Replace `torch._dynamo.graph_break`, which does nothing outside compiled code."""


def _exclude_functions() -> None:
    while _exclude_now:
        _exclude_now.pop()()


def _torchmetrics_placeholders() -> Iterator[tuple[str, Any]]:
    yield "_logger", logging.getLogger("torchmetrics")
    import_module("torchmetrics.utilities")  # first, as in the package
    yield "Metric", import_module("torchmetrics.metric").Metric
    yield "MetricCollection", import_module("torchmetrics.collections").MetricCollection
    yield "__version__", import_module("torchmetrics.__about__").__version__


def _plot_placeholders() -> Iterator[tuple[str, Any]]:
    yield "_AX_TYPE", object  # used in annotations only
    yield "_PLOT_OUT_TYPE", object
    yield "plot_single_or_multi_val", Placeholder(PLOT, "plot_single_or_multi_val")


def _replace_rich_placeholder() -> None:
    for package in ("lightning.pytorch.callbacks.progress", "lightning.pytorch.callbacks"):
        vars(sys.modules[package])["RichProgressBar"] = vars(sys.modules[RICH])["RichProgressBar"]


LAZY: Mapping[str, Deferral] = {
    DYNAMO: Deferral(_dynamo_placeholders, frozenset({"utils"}), after=_exclude_functions),
    f"{DYNAMO}.utils": Deferral(
        lambda: [("is_compile_supported", Placeholder(f"{DYNAMO}.utils", "is_compile_supported"))]
    ),
    "torch._inductor": Deferral(submodules=frozenset({"config"})),
    "torch._inductor.config": Deferral(),
    FLOPS: Deferral(lambda: [("FlopCounterMode", Placeholder(FLOPS, "FlopCounterMode"))]),
    "torchmetrics": Deferral(
        _torchmetrics_placeholders, frozenset({"__about__", "collections", "metric", "utilities"})
    ),
    PLOT: Deferral(_plot_placeholders),
    RICH: Deferral(
        lambda: [("RichProgressBar", Placeholder(RICH, "RichProgressBar"))], after=_replace_rich_placeholder
    ),
}


def defer_imports() -> None:
    """Import the modules in `LAZY` lazily from now on; safe to call again."""
    off = os.environ.get("PROJECT_LAZY_IMPORTS") == "0"
    if not off and not any(isinstance(finder, LazyFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, LazyFinder(LAZY))


def import_pending() -> None:
    """Import all pending modules before a fork, so that the child processes share them."""
    for name in LAZY:
        if name in sys.modules:
            load(sys.modules[name])


def freeze_gc() -> None:
    """Exclude all existing objects from garbage collection, and enable the collector.

    Call this after the imports and before training. Only the first call excludes objects; later calls would
    keep the objects of earlier runs. Forked processes share the memory of excluded objects, which a
    collection would copy.
    """
    global _gc_frozen
    gc.enable()
    if not _gc_frozen:
        _gc_frozen = True
        gc.freeze()
        atexit.register(gc.unfreeze)  # some libraries report uncollected objects as leaked at exit


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Disable garbage collection during imports, which saves a third of the time; then `freeze_gc`."""
    gc.disable()
    try:
        yield
    finally:
        freeze_gc()
