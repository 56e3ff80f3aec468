"""Check the paths that a run reads and writes.

- `find_problems`: the folders of data sets, of decoded images, and of runs can be used.
- `find_misplaced_outputs`: outputs outside the run folder replace only outputs of earlier runs.

A key names an output if the last word of its name is one of `FOLDERS` or `FILES`, such as `save_dir`. This
rule covers callbacks, loggers, profilers and log handlers of this package and of known libraries. Other
classes may read files under such names. Their keys count only if a YAML file sets them below `${paths.run}`.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from project.config.allowed_targets import plain_values
from project.config.source_index import LIBRARIES, Signature, constant_of, signature_of
from project.config.validation.command_request import CommandRequest, command_request
from project.config.validation.declared_keys import declared_values
from project.errors import InputError
from project.runs.checkpoints import has_checksum
from project.runtime.atomic_files import URL, reason_of
from project.runtime.output_files import is_earlier, refuse_unwritable_output, try_write

GROUPS = ("callbacks", "logger", "trainer", "hydra.job_logging", "hydra.hydra_logging")
FOLDERS = ("dir", "dirpath", "directory", "folder")
FILES = ("file", "filename", "filepath", "path")
KINDS = {
    ".csv": re.compile(rb"step,[^\n]*\b(train|val|test)/"),
    ".log": re.compile(rb"\[\d{4}-\d\d-\d\d [\d:,]+\]\[[A-Z]+\]\["),
    ".txt": re.compile(rb"(FIT|VALIDATE|TEST|PREDICT) Profiler Report"),
}
"""First bytes of our metrics, logs and profiles, by suffix."""
RECORD = ".hydra"
EVENTS = "events.out.tfevents."
STORES = tuple(f"{name}Logger" for name in ("Comet", "Litlogger", "MLFlow", "Neptune", "Wandb"))
"""Lightning loggers that keep many runs in one folder."""
VERSION = "version_"
"""Prefix of the run folders of Lightning's other loggers."""


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


class Output(NamedTuple):
    """File or folder that a run writes.

    Args:
        shown: key and value, as a user would type them.
        place: absolute, with all links followed.
        is_folder: else a file.
    """

    shown: str
    place: Path
    is_folder: bool


def find_misplaced_outputs(config: DictConfig) -> Iterator[str]:
    """Yield a line for each output that leaves its folder or would overwrite other files.

    Args:
        config: composed, with Hydra's own node, which knows the run folder.
    """
    run = _run_folder(config)
    if run is None:
        return
    subfolder = plain_values(config, "hydra.output_subdir")
    if subfolder != RECORD and (
        subfolder is not None or "hydra.output_subdir" in command_request(config).keys
    ):
        yield f"hydra.output_subdir={subfolder}: runs go on from what stands in {RECORD}; leave it out"
    for group in GROUPS:
        for key, value in _names(group, plain_values(config, group)):
            if Path(value).is_absolute() or ".." in Path(value).parts:
                yield f"{key}={value}: leads out of its folder, which another key gives; give a name alone"
    for output in find_outside_outputs(config):
        if problem := _in_the_way(output, run):
            yield f"{output.shown}: {problem}; give a new one, or leave it out: the run folder takes it"
            continue
        try:
            refuse_unwritable_output(output.shown, output.place, folder=output.is_folder)
        except InputError as error:
            yield str(error)


def find_outside_outputs(config: DictConfig) -> Iterator[Output]:
    """Yield the outputs outside the run folder.

    Args:
        config: as for `find_misplaced_outputs`.
    """
    run = _run_folder(config)
    if run is None:
        return
    declared = declared_values(config)
    start = run if config.hydra.job.get("chdir") else Path.cwd()
    for group in GROUPS:
        for key, value, is_folder in _places(group, plain_values(config, group), declared):
            place = _real(start / value)
            if not place.is_relative_to(run):
                yield Output(f"{key}={value}", place, is_folder)


def _run_folder(config: DictConfig) -> Path | None:
    """Return the run folder with links followed, None if unknown."""
    runtime = config.hydra.runtime
    return None if OmegaConf.is_missing(runtime, "output_dir") else _real(Path(runtime.output_dir))


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises where links lead in a circle


def _objects(key: str, plain: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(plain, Mapping):
        yield key, plain
        for name, child in plain.items():
            yield from _objects(f"{key}.{name}", child)


def _is_known(plain: Mapping[str, Any], name: str) -> bool:
    """Return whether this package or a library declares the argument, whose name shows its meaning."""
    target = plain.get("_target_")
    if not isinstance(target, str):
        return target is None
    found = signature_of(target)
    argument = found.arguments.get(name) if isinstance(found, Signature) else None
    owner = target if argument is None else argument.owner
    return owner.startswith(("project.", *LIBRARIES)) and not target.endswith(STORES)


def _is_of_library(plain: Mapping[str, Any]) -> bool:
    """Tell whether a library's class, which may write to addresses, is meant."""
    return str(plain.get("_target_")).startswith(LIBRARIES)


def _last_word(name: str) -> str:
    return str(name).rpartition("_")[2]


def _places(key: str, plain: Any, declared: Mapping[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Yield the keys that name an output, their value, and whether that is a folder."""
    for place, found in _objects(key, plain):
        in_folder = any(_last_word(name) in FOLDERS for name in found)
        for name, value in found.items():
            word = _last_word(name)
            meant = word in FOLDERS or (word in FILES and not in_folder)
            by_its_file = "${paths.run}" in str(declared.get(f"{place}.{name}"))
            known = _is_known(found, name) and not ("://" in str(value) and _is_of_library(found))
            if isinstance(value, str) and (by_its_file or (meant and known)):
                yield f"{place}.{name}", value, word not in FILES


def _names(key: str, plain: Any) -> Iterator[tuple[str, str]]:
    """Yield the other text values of objects that have a folder, such as file names."""
    for place, found in _objects(key, plain):
        if any(_last_word(name) in FOLDERS for name in found):
            for name, value in found.items():
                if isinstance(value, str) and _last_word(name) not in FOLDERS and _is_known(found, name):
                    yield f"{place}.{name}", value


def _in_the_way(output: Output, run: Path) -> str:
    """Return the reason why a run may not write an output; empty if it may."""
    place = output.place
    if URL.match(output.shown.partition("=")[2]):
        return "is an address; outputs are written to disks alone"
    if "=~" in output.shown:
        return "~ is read on the command line alone, elsewhere ${oc.env:HOME}"
    for above in place.parents:
        if (above / RECORD / "config.yaml").exists() and not run.is_relative_to(above):
            return f"lies in the folder of another run, {above}"
    if not os.path.lexists(place):
        return ""
    if output.is_folder:
        if not place.is_dir():
            return "is a file"
        others = [entry.name for entry in place.iterdir() if not _is_ours(entry)]
        return f"holds other files, such as {min(others)}" if others else ""
    if not place.is_file():
        return "is no regular file"
    return "" if _is_ours(place) else "is there already, and is of no run"


def _is_ours(file: Path) -> bool:
    """Tell whether a run has written a file, completely or in part."""
    if file.suffix == ".ckpt":
        return has_checksum(file)
    if kind := KINDS.get(file.suffix):
        return file.is_file() and is_earlier(file, kind)
    if any(file.glob(f"{VERSION}*")):
        return True
    return file.name.startswith((EVENTS, ".", VERSION)) or file.name.endswith(".ckpt.sha256")
