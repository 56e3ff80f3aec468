"""What the runs below some folders were told to do and what came out: their files, read."""

import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from project.errors import InputError, one_line
from project.runs.migrations import migrate
from project.runs.run_folder import RunFolder
from project.runtime import yaml_files

DURATION = "duration_s"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times faster
BLOCK = re.compile(r"^(?=[^\s#\-])", re.MULTILINE)
STATES = ("done", "pruned", "failed", "interrupted", "running")


class DamagedError(Exception):
    """A run folder's file cannot be read; the message names it."""


class ClassName(str):
    """The value of a `_target_`: a class or function by its full dotted name."""

    __slots__ = ()


@dataclass(frozen=True)
class Run:
    """One run, as its folder tells it.

    Args:
        folder: where it lies, as found below the folder that was given.
        state: one of `STATES`.
        config: a plain value for each full dotted key; the key of a group has the group's class.
        overrides: what was said on its command line, value by key.
        metrics: by name, the duration in seconds among them; empty unless it is done.
        monitor: name of the metric that it watched.
        mode: `max` or `min`: which values of that are better.
        started: time, ISO 8601.
        error: why it ended, if not well.
        trial: it was one of `debug=…` or `tune=…`, and its metrics are no results.
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
        """Whether its metrics are results."""
        return self.state == "done"


def read_runs(folders: Iterable[str | Path]) -> tuple[list[Run], list[str]]:
    """Read all runs below some folders, the folders themselves included; each once.

    Returns:
        The runs in the order of their names, without trials unless there is nothing else, and for each
        damaged one why it is passed over.

    Raises:
        InputError: a folder does not exist, or there is no run below any.
    """
    tops = [Path(folder) for folder in folders]
    runs, damaged, seen = [], [], set()
    for folder in tops:
        for found in _find(folder):
            if (real := found.resolve()) in seen:
                continue
            seen.add(real)
            try:
                runs.append(_read(RunFolder(found)))
            except DamagedError as error:
                damaged.append(str(error))
    if not seen:
        names = ", ".join(str(folder) for folder in tops)
        raise InputError(
            f"{names}: no run below it; a run is a folder with status.json and config.yaml, as "
            "scripts/train.py makes them below outputs/"
        )
    return [run for run in runs if not run.trial] or runs, damaged


def _find(top: Path) -> list[Path]:
    if not top.is_dir():
        raise InputError(f"{top}: no such folder; give folders with runs below them, such as outputs/sweep")
    found = []
    for folder, below, files in os.walk(top):
        below[:] = [name for name in below if name != "checkpoints" and not name.startswith(".")]
        if "status.json" in files and "config.yaml" in files:
            found.append(Path(folder))
    return sorted(found, key=lambda folder: natural(str(folder)))


def natural(name: str) -> list[Any]:
    """Sort key by which job 10 comes behind job 9."""
    return [(not part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", name)]


def _read(run: RunFolder) -> Run:
    try:
        status = json.loads(run.status_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{run.status_file}: {one_line(error)}") from error
    if not isinstance(status, dict) or status.get("state") not in STATES:
        raise DamagedError(f"{run.status_file}: no state among {', '.join(STATES)}")
    monitor = str(status.get("monitor") or "")
    return Run(
        folder=run.path,
        state=status["state"],
        config=flatten(_load_config(run.config_file)),
        overrides=_read_overrides(run.path / ".hydra" / "overrides.yaml"),
        # A run that is resumed keeps the metrics of its first end in the file until it ends again.
        metrics=_metrics(status, monitor) if status["state"] == "done" else {},
        monitor=monitor,
        mode=str(status.get("mode")),
        started=str(status.get("started") or ""),
        error=str(status.get("error") or ""),
        trial=bool(status.get("trial")),
    )


def _metrics(status: dict[str, Any], monitor: str) -> dict[str, float]:
    given = status.get("metrics")
    named = dict(given) if isinstance(given, dict) else {}
    named.setdefault(monitor, status.get("value"))
    named[DURATION] = status.get(DURATION)
    return {name: _number(value) for name, value in named.items() if name}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Give each plain value its full dotted key, and each group's `_target_` the group's own."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if name == "_target_" and prefix:
            flat[prefix] = ClassName(value)
            continue
        key = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(value, dict) and value:
            flat |= flatten(value, key)
        else:
            flat[key] = value
    return flat


def _load_config(file: Path) -> dict[str, Any]:
    try:
        text = yaml_files.read_text(file)
        if re.search(r"[&*]\w|^(---|%)", text, re.MULTILINE):  # blocks may depend on each other
            config = yaml_files.read_yaml(file)
        else:
            config = {}
            for block in BLOCK.split(text):
                config |= _load_block(block)
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise DamagedError(f"{file}: {one_line(error)}") from error
    if not isinstance(config, dict) or not config:
        raise DamagedError(f"{file}: no keys")
    return migrate(config)


@lru_cache(maxsize=4096)
def _load_block(text: str) -> dict[str, Any]:
    """Read one key of the first level. The runs of a sweep share most of these, and reading YAML is slow."""
    return yaml.load(text, LOADER) or {}  # noqa: S506


def _read_overrides(file: Path) -> dict[str, str]:
    """Keys and values as on the command line; none if the file is missing or damaged."""
    try:
        lines = yaml.load(file.read_text(), LOADER)  # noqa: S506
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    pairs = [line.partition("=") for line in lines or [] if isinstance(line, str)]
    return {key.lstrip("+~").partition("@")[0]: value for key, _, value in pairs}


def is_number(value: object) -> TypeGuard[float]:
    """Return true for numbers other than booleans."""
    return isinstance(value, int | float) and not isinstance(value, bool)
