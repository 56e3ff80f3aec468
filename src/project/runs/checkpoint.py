"""Checkpoints: reading them safely, and never writing what is worth nothing."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from project.errors import InputError, NonFiniteError
from project.runs import checkpoint_files
from project.targets import refuse_address

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
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"ckpt_path={path}: damaged or no checkpoint ({reason})") from error
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
    return sum(tensor.nbytes for _, tensor in _tensors("", checkpoint))


def require_finite(checkpoint: Checkpoint) -> None:
    """Refuse weights, or states of the optimizer, that hold nan or inf.

    Raises:
        NonFiniteError: names the first.
    """
    kept = {name: checkpoint[name] for name in ("state_dict", "optimizer_states") if name in checkpoint}
    found = [(name, tensor) for name, tensor in _tensors("", kept) if tensor.is_floating_point()]
    finite = [tensor.isfinite().all() for _, tensor in found]
    if finite and not torch.stack([flag.cpu() for flag in finite]).all():  # waits for a device once or twice
        name = next(name for (name, _), flag in zip(found, finite, strict=True) if not flag)
        raise NonFiniteError(
            f"step {checkpoint.get('global_step')}: {name} holds nan or inf and is not saved; the checkpoint "
            "before it stays; lower optim.lr, or limit gradients with trainer.gradient_clip_val=1.0"
        )


def _tensors(prefix: str, node: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(node, Tensor):
        yield prefix, node
        return
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        yield from _tensors(f"{prefix}.{name}".lstrip("."), child)
