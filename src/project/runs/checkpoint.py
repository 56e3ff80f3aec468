"""Checkpoint files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from project.errors import InputError


def read(path: str | Path, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read a checkpoint and make sure that a module can take it.

    Args:
        path: the file.
        weights: the module's state_dict.

    Raises:
        InputError: the file is damaged or no checkpoint, or belongs to another network.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        saved = checkpoint["state_dict"]
    except Exception as error:  # torch.load raises many kinds, all of them mean a file that is none
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"ckpt_path={path}: damaged or no checkpoint ({reason})") from error
    other = [
        name
        for name in {*saved, *weights}
        if name not in saved or name not in weights or saved[name].shape != weights[name].shape
    ]
    if other:
        raise InputError(
            f"ckpt_path={path}: of another network ({len(other)} weights differ, such as {min(other)}); "
            "choose the same model and data"
        )
    return checkpoint
