"""Folders that a run reads and writes."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from project.config.allowed_targets import ADDRESS
from project.config.validation.command_request import Asked

DOWNLOADED = ("project.datamodules.mnist.MNIST", "project.datamodules.cifar10.CIFAR10")


def find_problems(right: Mapping[str, Any], command: Asked) -> Iterator[str]:
    """Yield which folders cannot be used; arguments as of `data.find_problems`."""
    for key in ("paths.outputs", "paths.data", "paths.image_cache"):
        if key in right and isinstance(right[key], str) and not right[key].strip():
            yield f"{key}={right[key]!r}: name a folder, as in {key}={key.removeprefix('paths.')}"
            return
        if ADDRESS.match(str(right.get(key))):
            yield f"{key}={right[key]}: an address; give a folder on a disk, be it that of a network"
            return
        if str(right.get(key)).startswith("~"):
            yield f"{key}={right[key]}: ~ is read on the command line alone; write ${{oc.env:HOME}}"
            return
    if "paths.run" in command.keys:
        yield "paths.run: follows paths.outputs and name; set those, or hydra.run.dir"
    if problem := _unwritable(right.get("paths.outputs")):
        yield (
            f"paths.outputs={right['paths.outputs']}: {problem}; set paths.outputs to a folder that you may "
            "write to"
        )
    if right.get("data._target_") in DOWNLOADED and (problem := _no_folder(right.get("data.path"))):
        yield f"paths.data={right['data.path']}: {problem}; set paths.data to the folder of the data sets"
    if problem := _no_folder(right.get("data.image_cache")):
        given = right["data.image_cache"]
        yield f"paths.image_cache={given}: {problem}; set paths.image_cache to a folder, or null"


def _no_folder(wanted: Any) -> str:
    """Why something that exists is in the place of a folder; an empty string if nothing is."""
    if not isinstance(wanted, str):
        return ""
    nearest = _nearest(wanted)
    return "" if nearest.is_dir() else f"{nearest} is no folder"


def _unwritable(wanted: Any) -> str:
    """Why a folder cannot be made or written to; an empty string if it can."""
    if problem := _no_folder(wanted):
        return problem
    if not isinstance(wanted, str) or os.access(nearest := _nearest(wanted), os.W_OK | os.X_OK):
        return ""
    return f"{nearest} is not writable"


def _nearest(wanted: str) -> Path:
    """The folder, or the nearest one above it that exists."""
    path = Path(wanted).absolute()
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path
