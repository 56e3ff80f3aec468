"""What commands about a trained network let choose, each in the same words. Needs no torch."""

from typing import Literal

from project.errors import InputError

Views = Literal["none", "flip", "flip_translate"]
"""Changed copies of an image whose logits are averaged; see `modules.views`."""
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
"""What computes, as Lightning names it; `gpu` is whichever there is."""


def require_accelerator(wanted: str | None) -> None:
    """Make sure that this machine has an accelerator: without it, a trainer would take the CPU, or fail.

    Args:
        wanted: one of `Accelerator`; None leaves the choice to the run, as `auto` leaves it to Lightning.

    Raises:
        InputError: there is no such accelerator.
    """
    if wanted in (None, "auto", "cpu"):
        return
    import torch

    current = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if current is None or wanted not in ("gpu", current.type):
        raise InputError(f"accelerator={wanted}: there is none here; choose auto or cpu")
