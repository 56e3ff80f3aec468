"""Values of options that several commands after training share. Imports no torch."""

from typing import Literal

from project.errors import InputError

Tta = Literal["none", "flip", "flip_translate"]
"""Test-time augmentation; see `modules.tta`."""
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
"""Lightning's names of devices; `gpu` is any GPU."""


def require_accelerator(accelerator: str | None) -> None:
    """Check that this machine has an accelerator: a trainer would use the CPU instead, or fail.

    Args:
        accelerator: one of `Accelerator` [the run's own].

    Raises:
        InputError: this machine has no such accelerator.
    """
    if accelerator in (None, "auto", "cpu"):
        return
    import torch

    current = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if current is None or accelerator not in ("gpu", current.type):
        raise InputError(f"accelerator={accelerator}: there is none here; choose auto or cpu")
