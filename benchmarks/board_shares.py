"""What a run spends on TensorBoard's pictures, tables and measurements, counted within the run.

    python benchmarks/board_shares.py experiment=mnist_mlp paths.data=DIR trainer.max_epochs=4

Runs `scripts/train.py` with these overrides in this process, and tells at its end the processor time of each
thing that the callbacks `visuals` and `training_stats` do, and their share of all processor time since the
start of the interpreter. Steadier than `board_cost.py` where other programs keep the machine busy.
With one core for it, set `OMP_NUM_THREADS=1`.
"""

import os
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from measuring import TRAIN

spent: dict[str, float] = {}


@contextmanager
def noting(name: str) -> Iterator[None]:
    """Add the processor time of what is done within."""
    began = time.process_time()
    try:
        yield
    finally:
        spent[name] = spent.get(name, 0.0) + time.process_time() - began


def note(cls: type, *methods: str) -> None:
    """Have calls of these methods noted."""
    for method in methods:
        setattr(cls, method, _noted(getattr(cls, method), f"{cls.__name__}.{method}"))


def _noted(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    @wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        with noting(name):
            return function(*arguments, **options)

    return called


def note_pictures(visuals: type) -> None:
    """Note each picture under its name."""
    draw = visuals._try  # type: ignore[attr-defined]

    def noted(self: Any, name: str, function: Callable[[], None]) -> None:
        with noting(name):
            draw(self, name, function)

    visuals._try = noted  # type: ignore[attr-defined]


def tell() -> None:
    """Print what was spent."""
    total = time.process_time()
    print(f"\n{sum(spent.values()):.3f} of {total:.1f} CPU s: {100 * sum(spent.values()) / total:.2f} %")
    print(", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in spent.items()), flush=True)


def main() -> None:
    """Run the command."""
    from project.runtime import training_imports

    training_imports.defer()
    from project.callbacks.predictions import PredictionCollector
    from project.callbacks.training_stats import TrainingStats
    from project.callbacks.visuals import TestVisuals

    note(PredictionCollector, "append")
    note(TrainingStats, "on_optimizer_step", "take_gradient")
    note_pictures(TestVisuals)
    leave = os._exit

    def tell_and_leave(code: int) -> None:
        tell()
        leave(code)

    os._exit = tell_and_leave  # type: ignore[assignment]
    sys.argv = [str(TRAIN), *sys.argv[1:]]
    runpy.run_path(str(TRAIN), run_name="__main__")


if __name__ == "__main__":
    main()
