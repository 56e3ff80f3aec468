"""Configurations and results of runs, read from the files in their folders."""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from project.errors import InputError, one_line
from project.runs.migrations import migrate
from project.runtime import yaml_files

DURATION = "duration_s"
BLOCK = re.compile(r"^(?=[^\s#\-])", re.MULTILINE)
ANCHOR = re.compile(r"[&*]\w|^(---|%)", re.MULTILINE)
"""Text that may connect top-level keys of a YAML file, so that they cannot be parsed one by one."""
RUN_PATH = re.compile(r"\npaths:\n(?:  .*\n)*?  run: ([\w./+=-]+)\n")
"""Path of the run folder in its configuration, unless the path needs quotes."""
PATH_MARK = "run-folder-of-this-run"
"""Stands for the path in configurations that are parsed once for all runs that differ only in it."""
MIN_PATH_LENGTH = 6
METRIC_TITLES = {
    "accuracy": "accuracy",
    "top5_accuracy": "top-5 accuracy",
    "loss": "loss",
    "nll": "negative log-likelihood",
    "brier": "Brier score",
    "ece": "calibration error (ECE)",
    "macro_precision": "precision, macro average",
    "macro_recall": "recall, macro average",
    "macro_f1": "F1, macro average",
}
"""Titles of metrics by their keys in evaluation.json, in the order of tables."""
STATES = ("done", "pruned", "paused", "failed", "interrupted", "starting", "running")


class DamagedError(Exception):
    """Unreadable file in a run folder. The message names the file."""


class ClassName(str):
    """Value of a `_target_`: the dotted name of a class or function."""

    __slots__ = ()


@dataclass(frozen=True)
class Run:
    """Run, as read from its folder.

    Args:
        folder: run folder.
        state: one of `STATES`.
        config: plain values by dotted keys; the key of a group has the class of the group.
        overrides: values of the command line by key.
        metrics: metrics by name, including the duration [s]; empty unless the run is done.
        monitor: name of the monitored metric.
        mode: `max` or `min`, the better direction of the monitored metric.
        started: start time (ISO 8601).
        error: reason of a failure.
        trial: true for `debug=…` and `tune=…`, whose metrics are not results.
    """

    folder: Path
    state: str
    config: dict[str, Any]
    overrides: dict[str, str]
    metrics: dict[str, float]
    monitor: str
    mode: str
    started: str
    error: str
    trial: bool = False

    @property
    def done(self) -> bool:
        return self.state == "done"


def read_runs(folders: Iterable[str | Path]) -> tuple[list[Run], list[str]]:
    """Read all runs in and below some folders, each once.

    Returns:
        The runs in the order of their names, without trials unless all are trials, and a line for each
        damaged run.

    Raises:
        InputError: a folder is missing, or the folders contain no run.
    """
    tops = [Path(folder) for folder in folders]
    runs, damaged, found = [], [], find_run_folders(tops)
    for folder in found:
        try:
            runs.append(read_run(folder))
        except DamagedError as error:
            damaged.append(str(error))
    if not found:
        raise InputError(
            f"{', '.join(map(str, tops))}: contains no run; a run is a folder with status.json and "
            "config.yaml, as a run writes them to outputs/"
        )
    return [run for run in runs if not run.trial] or runs, damaged


def find_run_folders(tops: Iterable[Path]) -> list[Path]:
    """Return all run folders in and below some folders, each once, in the order of their names.

    Raises:
        InputError: a folder is missing.
    """
    found: dict[str, Path] = {}  # by real path
    for top in tops:
        real = os.path.realpath(top)
        for folder in _find(top):
            found.setdefault(os.path.normpath(os.path.join(real, folder.relative_to(top))), folder)
    return list(found.values())


def _find(top: Path) -> list[Path]:
    if not top.is_dir():
        raise InputError(f"{top}: no such folder; give folders with runs below them, such as outputs/sweep")
    found = []
    for folder, below, files in os.walk(top):
        below[:] = [name for name in below if name != "checkpoints" and not name.startswith(".")]
        if "status.json" in files and "config.yaml" in files:
            found.append(Path(folder))
    return sorted(found, key=lambda folder: natural_sort_key(str(folder)))


def natural_sort_key(name: str) -> list[Any]:
    """Return a sort key that orders numbers in names by value: job 10 after job 9."""
    return [(not part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", name)]


def read_run(folder: str | Path, status: Mapping[str, Any] | None = None) -> Run:
    """Return the run in a folder.

    Args:
        folder: run folder.
        status: content of its status.json, if it has been read.

    Raises:
        DamagedError: a file is missing or damaged.
    """
    folder = Path(folder)
    status = read_status(folder) if status is None else status
    monitor = str(status.get("monitor") or "")
    return Run(
        folder=folder,
        state=status["state"],
        config=_load_config(folder / "config.yaml"),
        overrides=_read_overrides(folder / ".hydra" / "overrides.yaml"),
        # The status of a resumed run has the metrics of its previous end until it ends again.
        metrics=_metrics(status, monitor) if status["state"] == "done" else {},
        monitor=monitor,
        mode=str(status.get("mode")),
        started=str(status.get("started") or ""),
        error=str(status.get("error") or ""),
        trial=bool(status.get("trial")),
    )


def read_status(folder: Path) -> dict[str, Any]:
    """Return the content of status.json.

    Raises:
        DamagedError: it is missing or damaged, or has no state.
    """
    file = folder / "status.json"
    try:
        status = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{file}: {one_line(error)}") from error
    if not isinstance(status, dict) or status.get("state") not in STATES:
        raise DamagedError(f"{file}: no state among {', '.join(STATES)}")
    return status


def _metrics(status: Mapping[str, Any], monitor: str) -> dict[str, float]:
    given = status.get("metrics")
    named = dict(given) if isinstance(given, dict) else {}
    named.setdefault(monitor, status.get("value"))
    named[DURATION] = status.get(DURATION)
    return {
        name: float(value) if isinstance(value, int | float) else math.nan
        for name, value in named.items()
        if name
    }


def flatten(config: Mapping[str, Any], prefix: str = "", *, class_names: bool = True) -> dict[str, Any]:
    """Return the plain values of a configuration by dotted keys.

    Args:
        config: nested mappings.
        prefix: dotted key of the mapping [none].
        class_names: store a group's `_target_` as a `ClassName` under the group's key [true].
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        if class_names and name == "_target_" and prefix:
            flat[prefix] = ClassName(value)
        elif isinstance(value, Mapping) and value:
            flat |= flatten(value, key, class_names=class_names)
        else:
            flat[key] = value
    return flat


def format_value(value: object) -> str:
    """Format a value of a configuration briefly, as typed on the command line."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)


def comparable_text(value: object) -> str:
    """Return a string for comparing values: the same for 1 and 1.0, different ones for true and '1'."""
    return repr(float(value)) if type(value) is int else repr(value)


def _load_config(file: Path) -> dict[str, Any]:
    """Return the plain values of a configuration by dotted keys."""
    try:
        content = yaml_files.read_text(file)
        found = RUN_PATH.match(content, max(0, content.find("\npaths:\n")))
        path = found[1] if found and len(found[1]) >= MIN_PATH_LENGTH else ""
        marked = content.replace(path, PATH_MARK) if path else content
        if _has_anchors(marked):
            return _flatten_config(yaml_files.read_yaml(file))
        config, with_path = _parse_config(marked)
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise DamagedError(f"{file}: {one_line(error)}") from error
    return config | {key: _replace_mark(config[key], path) for key in with_path}


@lru_cache(maxsize=4096)
def _has_anchors(content: str) -> bool:
    """Return true if top-level keys cannot be parsed one by one."""
    return ANCHOR.search(content) is not None


@lru_cache(maxsize=4096)
def _parse_config(content: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Parse a configuration; also return the keys whose values contain `PATH_MARK`."""
    config: dict[str, Any] = {}
    for block in BLOCK.split(content):
        config |= _load_block(block)
    flat = _flatten_config(config)
    return flat, tuple(key for key, value in flat.items() if PATH_MARK in str(value))


def _flatten_config(config: Any) -> dict[str, Any]:
    if not isinstance(config, dict) or not config:
        raise ValueError("no keys")
    return flatten(migrate(config))


@lru_cache(maxsize=4096)
def _load_block(content: str) -> dict[str, Any]:
    """Parse one top-level key; cached, as the runs of a sweep share most blocks and parsing is slow."""
    return yaml.load(content, yaml_files.SafeLoader) or {}  # noqa: S506


def _replace_mark(value: Any, path: str) -> Any:
    if isinstance(value, list):
        return [_replace_mark(item, path) for item in value]
    return value.replace(PATH_MARK, path) if isinstance(value, str) else value


def _read_overrides(file: Path) -> dict[str, str]:
    """Return the overrides of a run by key; empty if the file is missing or damaged."""
    try:
        return dict(_parse_overrides(file.read_text()))
    except (OSError, ValueError, yaml.YAMLError):
        return {}


@lru_cache(maxsize=4096)
def _parse_overrides(content: str) -> dict[str, str]:
    lines = yaml.load(content, yaml_files.SafeLoader)  # noqa: S506
    pairs = [line.partition("=") for line in lines or [] if isinstance(line, str)]
    return {key.lstrip("+~").partition("@")[0]: value for key, _, value in pairs}


def is_number(value: object) -> TypeGuard[float]:
    """Return True for numbers other than booleans."""
    return isinstance(value, int | float) and not isinstance(value, bool)
