"""Weights from a file, for a network whose head is new."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from project.errors import InputError, summarize

INSIDE = ("state_dict", "model")
"""Where training scripts keep the state_dict in what they save; our own checkpoints have the first."""
PREFIXES = ("", "network.network.", "network.", "module.", "model.")
"""What stands before the names in our own checkpoints, and in those of wrapped networks."""
AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
"""Heads of Inception networks that serve the training from scratch alone."""
DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")
"""torchvision's files of DenseNets have a dot in names that its networks do not have."""


def load_body(network: nn.Module, file: str, head: str, name: str) -> None:
    """Load all weights but the head's, which may have been made for any number of classes.

    Args:
        network: into which they are loaded.
        file: a state_dict, or a checkpoint that holds one, such as a run's `checkpoints/best.ckpt`.
        head: name of the last layer.
        name: as in `model.name`, for messages.

    Raises:
        InputError: there is no such file, or it does not fit the network.
    """
    found = _read(file)
    own = network.state_dict()
    body = {entry for entry in own if not entry.startswith(f"{head}.")}
    readings = [_without(prefix, found) for prefix in PREFIXES]
    named = max(readings, key=lambda entries: len(body & set(entries)))
    given = {entry: value for entry, value in named.items() if not entry.startswith((f"{head}.", *AUXILIARY))}
    lacking = [entry for entry in own if entry in body and entry not in given and not _is_count(entry)]
    strange = [entry for entry in given if entry not in body]
    other = [entry for entry in given if entry in body and given[entry].shape != own[entry].shape]
    told = [_told("lacks", lacking), _told("has unknown", strange)]
    if other:
        shapes = f"{list(given[other[0]].shape)} for {list(own[other[0]].shape)}"
        told.append(f"{_told('has another shape of', other)}: {shapes}")
    if problems := [line for line in told if line]:
        raise InputError(
            f"model.weights={file}: not the weights of model.name={name}; it {', '.join(problems)}; name the "
            "network that they are of, and the model.resize that it had"
        )
    network.load_state_dict(given, strict=False)


def _read(file: str) -> Mapping[str, Tensor]:
    if "://" in file:
        raise InputError(f"model.weights={file}: an address; download the file first, and give its path")
    try:
        saved: Any = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(
            f"model.weights={file}: no such file; give a file with a state_dict, DEFAULT, or null"
        ) from error
    except IsADirectoryError as error:
        raise InputError(f"model.weights={file}: a folder; name a file in it") from error
    except Exception as error:  # torch.load raises many kinds, all of them mean no file of plain weights
        raise InputError(
            f"model.weights={file}: cannot be read as a state_dict ({summarize(error)})"
        ) from error
    for key in INSIDE:
        if isinstance(saved, Mapping) and isinstance(saved.get(key), Mapping):
            saved = saved[key]
            break
    if not isinstance(saved, Mapping) or not any(isinstance(value, Tensor) for value in saved.values()):
        raise InputError(
            f"model.weights={file}: holds no state_dict; save one with torch.save(network.state_dict(), FILE)"
        )
    return {DENSENET.sub(r"\1", str(key)): value for key, value in saved.items() if isinstance(value, Tensor)}


def _without(prefix: str, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries that begin with a prefix, by the rest of their names."""
    return {key.removeprefix(prefix): value for key, value in entries.items() if key.startswith(prefix)}


def _is_count(entry: str) -> bool:
    """Whether an entry is batch norm's count of batches, which old files lack."""
    return entry.endswith(".num_batches_tracked")


def _told(verb: str, entries: Iterable[str]) -> str:
    listed = list(entries)
    more = f" and {len(listed) - 1:,} more" if len(listed) > 1 else ""
    return f"{verb} {listed[0]}{more}" if listed else ""
