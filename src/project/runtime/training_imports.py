"""What a run need not import, and importing without the garbage collector.

Of what `import lightning` brings with it a run needs less than half. What it does not need waits (see
`deferred`) until something is asked of it, and is then imported as ever:

- `torch._dynamo`, the compiler's front end, with sympy and half of torch: Lightning names one class of it,
  and optimizers switch it off for their own methods, which takes it to be imported. As long as nobody else
  has asked for it there is nothing to switch off. `torch.compile` asks for it, and one operation of
  torchvision.
- `torch._inductor`, its back end, which imports triton: `torch.use_deterministic_algorithms`, which Lightning
  always calls, sets an option of it.
- `torch.utils.flop_counter`, which imports triton: Lightning's table of layers can count operations.
- `torchmetrics`, the package: it imports all its metrics, and torchvision for some of them. Lightning and our
  metrics need the base classes.
- `torchmetrics.utilities.plot`, which imports matplotlib: for `Metric.plot`.

Where a version of a library asks for something else of them, they run earlier, and a start takes longer.
"""

import atexit
import gc
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from types import FunctionType
from typing import Any

from project.runtime.lazy_imports import Deferral, Finder, run, stand_in

DYNAMO = "torch._dynamo"
FLOPS = "torch.utils.flop_counter"
PLOT = "torchmetrics.utilities.plot"

_settled = False

_disable_now: list[Callable[[], None]] = []
"""For each function that Dynamo shall not touch, what tells Dynamo so once it has run."""


def _of_dynamo() -> Iterator[tuple[str, Any]]:
    yield "OptimizedModule", stand_in(DYNAMO, "OptimizedModule")
    yield "disable", _disable
    yield "graph_break", _graph_break


def _disable(function: Any = None, *arguments: Any, **options: Any) -> Any:
    """`torch._dynamo.disable`: the function itself as long as there is no Dynamo to keep off it."""
    if function is None:
        return lambda function: _disable(function, *arguments, **options)
    if not isinstance(function, FunctionType):  # classes and networks are changed, not wrapped
        run(sys.modules[DYNAMO])
        return sys.modules[DYNAMO].disable(function, *arguments, **options)
    called: Callable[..., Any] = function

    @wraps(function)
    def disabled(*args: Any, **kwargs: Any) -> Any:
        return called(*args, **kwargs)

    def disable_now() -> None:
        nonlocal called
        called = sys.modules[DYNAMO].disable(function, *arguments, **options)

    _disable_now.append(disable_now)
    return disabled


def _settle_dynamo() -> None:
    while _disable_now:
        _disable_now.pop()()


def _graph_break(message: str = "") -> None:
    """`torch._dynamo.graph_break`: does nothing outside compiled code."""


def _of_torchmetrics() -> Iterator[tuple[str, Any]]:
    yield "_logger", logging.getLogger("torchmetrics")
    import_module("torchmetrics.utilities")  # first, as the package has it
    yield "Metric", import_module("torchmetrics.metric").Metric
    yield "MetricCollection", import_module("torchmetrics.collections").MetricCollection
    yield "__version__", import_module("torchmetrics.__about__").__version__


def _of_plot() -> Iterator[tuple[str, Any]]:
    yield "_AX_TYPE", object  # these two stand in annotations
    yield "_PLOT_OUT_TYPE", object
    yield "plot_single_or_multi_val", _calling(PLOT, "plot_single_or_multi_val")


def _calling(module: str, name: str) -> Callable[..., Any]:
    """A function that has a module run and calls the one that is meant."""

    def call(*arguments: Any, **options: Any) -> Any:
        run(sys.modules[module])
        return getattr(sys.modules[module], name)(*arguments, **options)

    return call


DEFERRALS: Mapping[str, Deferral] = {
    DYNAMO: Deferral(_of_dynamo, frozenset({"utils"}), after=_settle_dynamo),
    f"{DYNAMO}.utils": Deferral(
        lambda: [("is_compile_supported", _calling(f"{DYNAMO}.utils", "is_compile_supported"))]
    ),
    "torch._inductor": Deferral(submodules=frozenset({"config"})),
    "torch._inductor.config": Deferral(),
    FLOPS: Deferral(lambda: [("FlopCounterMode", stand_in(FLOPS, "FlopCounterMode"))]),
    "torchmetrics": Deferral(
        _of_torchmetrics, submodules=frozenset({"__about__", "collections", "metric", "utilities"})
    ),
    PLOT: Deferral(_of_plot),
}


def defer() -> None:
    """From now on, have these modules wait when they are imported; may be called again."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder(DEFERRALS))


def complete() -> None:
    """Run all modules that wait: before processes are forked that may all need them."""
    for name in DEFERRALS:
        if name in sys.modules:
            run(sys.modules[name])


def settle() -> None:
    """Keep what there is by now out of later garbage collections, and have them take place.

    To be called when all has been imported, and before training, whose objects are collected as ever. Only
    the first call keeps anything: later ones would keep what earlier runs left. Processes forked afterwards
    share the memory of what was imported, which collections would touch.
    """
    global _settled
    gc.enable()
    if not _settled:
        _settled = True
        gc.freeze()
        atexit.register(gc.unfreeze)  # some libraries report what is not collected at the end as leaked


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Import in a third less time: what modules are made of is hardly ever garbage."""
    gc.disable()
    try:
        yield
    finally:
        settle()
