"""Checks of the folders that a run reads and writes."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from project.config.source_index import constant_of
from project.config.validation.command_request import CommandRequest
from project.runtime.atomic_files import URL, reason_of
from project.runtime.output_files import try_write


def find_problems(right: Mapping[str, Any], command: CommandRequest) -> Iterator[str]:
    """Yield a line for each folder that cannot be used; arguments as of `data.find_problems`."""
    for key in ("paths.outputs", "paths.data", "paths.image_cache"):
        value = right.get(key)
        if isinstance(value, str) and not value.strip():
            yield f"{key}={value!r}: name a folder, as in {key}={key.removeprefix('paths.')}"
            return
        if URL.match(str(value)):
            yield f"{key}={value}: an address; give a folder on a disk, be it that of a network"
            return
        if str(value).startswith("~"):
            yield f"{key}={value}: ~ is read on the command line alone; write ${{oc.env:HOME}}"
            return
    if "paths.run" in command.keys:
        yield "paths.run: follows paths.outputs and name; set those, or hydra.run.dir"
    outputs = right.get("paths.outputs")
    problem = _not_a_folder(outputs)
    if isinstance(outputs, str) and not problem and not os.access(_nearest(outputs), os.W_OK | os.X_OK):
        problem = f"{_nearest(outputs)} is not writable"
    if problem:
        yield f"paths.outputs={outputs}: {problem}; set paths.outputs to a folder that you may write to"
    target = right.get("data._target_")
    facts = (constant_of(target, "DATASET_FACTS") if isinstance(target, str) else None) or {}
    path = right.get(f"data.{facts.get('download')}")
    if problem := _not_makable(path):
        yield f"paths.data={path}: {problem}; set paths.data to the folder of the data sets"
        return
    image_cache = right.get("data.image_cache")
    find = _not_makable if "paths.image_cache" in command.keys else _not_a_folder
    if problem := find(image_cache):
        yield f"paths.image_cache={image_cache}: {problem}; set paths.image_cache to a folder, or null"


def _not_a_folder(wanted: Any) -> str:
    """Say that something else is in the place of a folder; return an empty string if nothing is."""
    if not isinstance(wanted, str) or (nearest := _nearest(wanted)).is_dir():
        return ""
    return f"{nearest} is no folder"


def _not_makable(wanted: Any) -> str:
    """Say why a folder does not exist and cannot be made; one that exists need not be writable."""
    if (problem := _not_a_folder(wanted)) or not isinstance(wanted, str) or Path(wanted).exists():
        return problem
    try:
        try_write(Path(wanted), folder=True)
    except OSError as error:
        return f"cannot be made ({reason_of(error)})"
    return ""


def _nearest(wanted: str) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    path = Path(wanted).absolute()
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path
