"""Options that the commands evaluate, predict and export share. Does not import torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from project.config.command_options import Overrides, option
from project.errors import InputError
from project.runs.comparison import LAST

Tta = Literal["none", "flip", "flip_translate", "selective"]
"""Test-time augmentation; see `modules.tta`."""
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
"""Lightning's names of devices; `gpu` is any GPU."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of a command that loads a trained run."""

    run: str = option(LAST, "run folder, sweep folder (its best run), or last")
    weights: str = option("auto", "auto (those of the run's test), best, last, previous, or a file")
    tta: Tta | None = option(None, "test-time augmentation; null: as in the run's test")
    outputs: Path = option(Path("outputs"), "folder to search for run=last")


@dataclass(frozen=True, kw_only=True)
class DataOptions(RunOptions):
    """Options of a command that also loads the run's data, or other data."""

    data: Overrides = option(Overrides(), "other data: data=cifar10, data.path=photos")
    paths: Overrides = option(Overrides(), "other location of the data: paths.data=FOLDER")

    @property
    def data_overrides(self) -> list[str]:
        """Overrides of the run's data."""
        return [*self.data, *self.paths]


def require_accelerator(accelerator: str | None) -> None:
    """Check that an accelerator is available; a trainer would fail or silently use the CPU.

    Args:
        accelerator: one of `Accelerator` [that of the run].

    Raises:
        InputError: this machine has no such accelerator.
    """
    if accelerator in (None, "auto", "cpu"):
        return
    import torch

    current = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if current is None or accelerator not in ("gpu", current.type):
        raise InputError(f"accelerator={accelerator}: not available on this machine; choose auto or cpu")
