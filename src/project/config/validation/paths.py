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
from project.config.logged_metrics import methods_of
from project.config.signatures import Signature, signature_of
from project.config.source_index import LIBRARIES, constant_of
from project.config.validation.command_request import CommandRequest, command_request
from project.config.validation.declared_keys import declared_values
from project.errors import InputError
from project.runs.checkpoint_files import has_checksum
from project.runs.comparison import LAST, find_trained
from project.runtime.atomic_files import URL, reason_of
from project.runtime.output_files import is_earlier_output, refuse_unwritable_output, try_write

GROUPS = ("callbacks", "logger", "trainer", "hydra.job_logging", "hydra.hydra_logging")
FOLDERS = ("dir", "dirpath", "directory", "folder")
FILES = ("file", "filename", "filepath", "path")
FILE_PATTERNS = {
    ".csv": re.compile(rb"step,[^\n]*\b(train|val|test)/"),
    ".log": re.compile(rb"\[\d{4}-\d\d-\d\d [\d:,]+\]\[[A-Z]+\]\["),
    ".txt": re.compile(rb"(FIT|VALIDATE|TEST|PREDICT) Profiler Report"),
}
"""Patterns that files of earlier runs match (metrics, logs, profiles), by suffix."""
RECORD = ".hydra"
EVENTS = "events.out.tfevents."
STORES = tuple(f"{name}Logger" for name in ("Comet", "Litlogger", "MLFlow", "Neptune", "Wandb"))
"""Endings of the class names of Lightning loggers that keep many runs in one folder."""
VERSION = "version_"
"""Prefix of the run folders of Lightning's other loggers."""


def find_problems(right: Mapping[str, Any], command: CommandRequest) -> Iterator[str]:
    """Yield a line for each unusable folder; arguments as for `data.find_problems`."""
    for key in ("paths.outputs", "paths.data", "paths.image_cache"):
        value = right.get(key)
        if isinstance(value, str) and not value.strip():
            yield f"{key}={value!r}: empty; name a folder, as in {key}={key.removeprefix('paths.')}"
            return
        if URL.match(str(value)):
            yield f"{key}={value}: is a URL; give a folder of a local or network file system"
            return
        if str(value).startswith("~"):
            yield f"{key}={value}: ~ is expanded on the command line only; write ${{oc.env:HOME}}"
            return
    if "paths.run" in command.keys:
        yield "paths.run: follows paths.outputs and name; set those, or hydra.run.dir"
    yield from _wrong_teacher(right)
    outputs = right.get("paths.outputs")
    problem = _not_a_folder(outputs)
    if isinstance(outputs, str) and not problem and not os.access(_nearest(outputs), os.W_OK | os.X_OK):
        problem = f"{_nearest(outputs)} is not writable"
    if problem:
        yield f"paths.outputs={outputs}: {problem}; set paths.outputs to a folder that you may write to"
    target = right.get("data._target_")
    facts = (constant_of(target, "DATASET_FACTS") if isinstance(target, str) else None) or {}
    path = right.get(f"data.{facts.get('download')}")
    if problem := _not_creatable(path):
        yield f"paths.data={path}: {problem}; set paths.data to the folder of the data sets"
        return
    image_cache = right.get("data.image_cache")
    find = _not_creatable if "paths.image_cache" in command.keys else _not_a_folder
    if problem := find(image_cache):
        yield f"paths.image_cache={image_cache}: {problem}; set paths.image_cache to a folder, or null"


def _wrong_teacher(right: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line if the teacher of a task that takes one is not a run folder."""
    teacher = right.get("task.teacher")
    if not isinstance(teacher, str) or "set_teacher" not in (methods_of(str(right["task._target_"])) or ()):
        return
    if teacher == LAST:
        yield "task.teacher=last: changes with each run; give the folder of the teacher's run"
        return
    try:
        find_trained(teacher, key="task.teacher")
    except InputError as error:
        yield str(error)


def _not_a_folder(wanted: Any) -> str:
    """Return the reason why a path cannot be a folder; empty if it can."""
    if not isinstance(wanted, str) or (nearest := _nearest(wanted)).is_dir():
        return ""
    return f"{nearest} is not a folder"


def _not_creatable(wanted: Any) -> str:
    """Return the reason why a folder cannot be created; empty if it exists, even read-only."""
    if (problem := _not_a_folder(wanted)) or not isinstance(wanted, str) or Path(wanted).exists():
        return problem
    try:
        try_write(Path(wanted), folder=True)
    except OSError as error:
        return f"cannot be created ({reason_of(error)})"
    return ""


def _nearest(wanted: str) -> Path:
    """Return a path, or the nearest of its parents that exists."""
    path = Path(wanted).absolute()
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


class Output(NamedTuple):
    """File or folder that a run writes.

    Args:
        shown: key and value, as a user would type them.
        place: absolute path, symbolic links resolved.
        is_folder: true for a folder, false for a file.
    """

    shown: str
    place: Path
    is_folder: bool


def find_misplaced_outputs(config: DictConfig) -> Iterator[str]:
    """Yield a line for each output that leaves its folder or would overwrite other files.

    Args:
        config: composed configuration with Hydra's own node, which holds the run folder.
    """
    run = _run_folder(config)
    if run is None:
        return
    subfolder = plain_values(config, "hydra.output_subdir")
    if subfolder != RECORD and (
        subfolder is not None or "hydra.output_subdir" in command_request(config).keys
    ):
        yield f"hydra.output_subdir={subfolder}: runs are resumed from {RECORD}; leave it out"
    for group in GROUPS:
        for key, value in _file_names(group, plain_values(config, group)):
            if Path(value).is_absolute() or ".." in Path(value).parts:
                yield f"{key}={value}: leaves the folder that another key sets; give a plain file name"
    for output in find_outside_outputs(config):
        if problem := _obstacle(output, run):
            yield f"{output.shown}: {problem}; give a new path, or leave it out to use the run folder"
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
    """Return the run folder with symbolic links resolved; None if unknown."""
    runtime = config.hydra.runtime
    return None if OmegaConf.is_missing(runtime, "output_dir") else _real(Path(runtime.output_dir))


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises an error for circular links


def _objects(key: str, plain: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(plain, Mapping):
        yield key, plain
        for name, child in plain.items():
            yield from _objects(f"{key}.{name}", child)


def _is_known(plain: Mapping[str, Any], name: str) -> bool:
    """Return True if this package or a known library declares the argument, whose name is then clear."""
    target = plain.get("_target_")
    if not isinstance(target, str):
        return target is None
    found = signature_of(target)
    argument = found.arguments.get(name) if isinstance(found, Signature) else None
    owner = target if argument is None else argument.owner
    return owner.startswith(("project.", *LIBRARIES)) and not target.endswith(STORES)


def _is_of_library(plain: Mapping[str, Any]) -> bool:
    """Return True for a class of a known library, which may write to URLs."""
    return str(plain.get("_target_")).startswith(LIBRARIES)


def _last_word(name: str) -> str:
    return str(name).rpartition("_")[2]


def _places(key: str, plain: Any, declared: Mapping[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Yield each key that names an output, with its value, and true for a folder."""
    for place, found in _objects(key, plain):
        in_folder = any(_last_word(name) in FOLDERS for name in found)
        for name, value in found.items():
            word = _last_word(name)
            is_output_name = word in FOLDERS or (word in FILES and not in_folder)
            in_run_folder = "${paths.run}" in str(declared.get(f"{place}.{name}"))
            known = _is_known(found, name) and not ("://" in str(value) and _is_of_library(found))
            if isinstance(value, str) and (in_run_folder or (is_output_name and known)):
                yield f"{place}.{name}", value, word not in FILES


def _file_names(key: str, plain: Any) -> Iterator[tuple[str, str]]:
    """Yield the other strings of objects that have a folder, such as file names."""
    for place, found in _objects(key, plain):
        if any(_last_word(name) in FOLDERS for name in found):
            for name, value in found.items():
                if isinstance(value, str) and _last_word(name) not in FOLDERS and _is_known(found, name):
                    yield f"{place}.{name}", value


def _obstacle(output: Output, run: Path) -> str:
    """Return the reason why a run may not write an output; empty if it may."""
    place = output.place
    if URL.match(output.shown.partition("=")[2]):
        return "is a URL; outputs are written to a file system"
    if "=~" in output.shown:
        return "~ is expanded on the command line only; write ${oc.env:HOME}"
    for above in place.parents:
        if (above / RECORD / "config.yaml").exists() and not run.is_relative_to(above):
            return f"is inside the folder of another run, {above}"
    if not os.path.lexists(place):
        return ""
    if output.is_folder:
        if not place.is_dir():
            return "is a file"
        others = [entry.name for entry in place.iterdir() if not _is_of_run(entry)]
        return f"contains other files, such as {min(others)}" if others else ""
    if not place.is_file():
        return "is not a regular file"
    return "" if _is_of_run(place) else "already exists and was not written by a run"


def _is_of_run(file: Path) -> bool:
    """Return True for a file that a run has written, completely or in part."""
    if file.suffix == ".ckpt":
        return has_checksum(file)
    if kind := FILE_PATTERNS.get(file.suffix):
        return file.is_file() and is_earlier_output(file, kind)
    if any(file.glob(f"{VERSION}*")):
        return True
    return file.name.startswith((EVENTS, ".", VERSION)) or file.name.endswith(".ckpt.sha256")
