"""Checkpoints: reading them safely, and never writing what is worth nothing."""

import io
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from project.config.allowed_targets import refuse_address
from project.errors import InputError, one_line, summarize
from project.runs import checkpoint_files

Checkpoint = dict[str, Any]
Weights = Mapping[str, Tensor]


def read(path: str | Path, weights: Weights | None = None) -> Checkpoint:
    """Read a checkpoint; no code that it may hold is run.

    Args:
        path: the file.
        weights: the state_dict of the module that is to take it, to make sure that it can.

    Returns:
        What was saved, its tensors on the CPU.

    Raises:
        InputError: the path is an address, the file is missing, damaged or no checkpoint, or it belongs to
            another network.
    """
    if line := refuse_address("ckpt_path", str(path)):
        raise InputError(line)
    if problem := checkpoint_files.find_damage(Path(path)):
        raise InputError(f"ckpt_path={path}: {problem}")
    try:
        checkpoint: Checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        saved = checkpoint["state_dict"]
        checkpoint["epoch"], checkpoint["loops"]["fit_loop"]
    except Exception as error:  # torch.load raises many kinds, all of them mean a file that is none
        raise InputError(f"ckpt_path={path}: damaged or no checkpoint ({summarize(error)})") from error
    if weights is not None:
        _require_same_network(path, saved, weights)
    return checkpoint


def _require_same_network(path: str | Path, saved: Weights, weights: Weights) -> None:
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


def save(checkpoint: Checkpoint, stream: IO[bytes]) -> None:
    """Write a checkpoint to a stream."""
    torch.save(checkpoint, stream)


def dump(checkpoint: Checkpoint) -> memoryview:
    """Return a checkpoint as the bytes of its file."""
    stream = io.BytesIO()
    save(checkpoint, stream)
    return stream.getbuffer()


def size(checkpoint: Checkpoint) -> int:
    """Bytes of its tensors, which are nearly all of its file."""
    return sum(tensor.nbytes for tensor in _tensors(checkpoint))


def require_loadable(content: memoryview) -> None:
    """Make sure that a checkpoint can be read again, before a long training finds out at its end.

    Args:
        content: bytes of the file.

    Raises:
        InputError: it holds something else than plain values and tensors.
    """
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = found[1] if found else one_line(error)
        raise InputError(
            f"checkpoint: it would hold {what}, which is not read again (weights_only=True); keep plain "
            "values and tensors in the states of callbacks, modules and optimizers: float(x), str(path)"
        ) from error


def _tensors(node: Any) -> Iterator[Tensor]:
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _tensors(child)
