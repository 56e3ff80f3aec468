"""Jobs of a sweep: their overrides, states and names."""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from project.runs.ranking import REPETITIONS
from project.runtime.secrets import redact_text

State = Literal["waiting", "running", "done", "pruned", "failed", "interrupted"]

SUCCEEDED: tuple[State, ...] = ("done", "pruned")
FINISHED: tuple[State, ...] = (*SUCCEEDED, "failed")
"""States of jobs that a resumed sweep does not run again."""

LONGEST_NAME = 60
HIDDEN = ("+callbacks.pruning", "hydra.")
"""Beginnings of overrides that no user gave."""


@dataclass
class Job:
    """One run of a sweep.

    Args:
        number: position in the sweep.
        overrides: all overrides, as on the command line.
        varied: overrides by which the sweep's jobs differ.
        name: name of the run folder in the sweep's folder.
        point: number of the point; jobs of one point differ in seed or fold alone.
        state: state of the job.
        value: value of the monitored metric, once done.
        metrics: all metrics, once done.
        error: error on one line.
        started, finished: times (UTC, ISO 8601).
        duration_s: duration of the last attempt [s].
        attempts: number of starts.
    """

    number: int
    overrides: list[str]
    varied: list[str]
    name: str
    point: int = 0
    state: State = "waiting"
    value: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    started: str | None = None
    finished: str | None = None
    duration_s: float | None = None
    attempts: int = 0

    @property
    def label(self) -> str:
        """Settings that tell the job from others, on one line."""
        return _label(self.settings)

    @property
    def settings(self) -> dict[str, str]:
        """Values of the keys in which the sweep's jobs differ."""
        pairs = (text.partition("=") for text in shown(self.varied))
        return {key.lstrip("+"): value for key, _, value in pairs}

    @property
    def point_label(self) -> str:
        """Settings that tell the point of the job from others, on one line."""
        return _label({key: value for key, value in self.settings.items() if key not in REPETITIONS})

    @property
    def point_key(self) -> Hashable:
        """Key that is equal for jobs of one point; 0.1 and 1e-1 are equal."""
        return frozenset(
            (key, _number(value)) for key, value in self.settings.items() if key not in REPETITIONS
        )

    @property
    def repetition(self) -> tuple[Hashable, ...]:
        """Seed and fold."""
        return tuple(_number(self.settings.get(key, "")) for key in REPETITIONS)


def _label(settings: Mapping[str, str]) -> str:
    parts = (f"{key.rpartition('.')[2]}={short(value)}" for key, value in settings.items())
    return " ".join(parts) or "the only point"


def _number(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def shown(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that a user gave, without secrets."""
    return [redact_text(text) for text in overrides if not text.startswith(HIDDEN)]


def quoted(text: str) -> str:
    """Return a string in the grammar of Hydra's overrides."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def in_grammar(value: Any) -> str:
    """Return a plain value in the grammar of Hydra's overrides."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{in_grammar(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(in_grammar, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def short(value: str) -> str:
    """Shorten a number to four significant digits; return other values as they are."""
    if re.fullmatch(r"-?\d*\.\d{4,}(e[-+]?\d+)?", value.lower()):
        return f"{float(value):.4g}"
    return value


def folder_name(number: int, varied: Sequence[str], digits: int = 1) -> str:
    """Return the name of a job's folder: its number, and the values in which it differs.

    Names stand alone (`cnn`), numbers behind the last part of their key (`lr0.1`). No character needs quotes
    in a shell or an override.
    """
    parts = []
    for text in shown(varied):
        key, _, value = text.partition("=")
        key = key.lstrip("+~").rpartition(".")[2].rpartition("/")[2]
        value = short(value)
        is_number = re.fullmatch(r"[-+0-9.]+(e[-+]?\d+)?|true|false|null", value.lower())
        parts.append(f"{key}{value}" if is_number else value or key)
    words = [re.sub(r"[^\w.+-]+", "-", part).strip("-") for part in parts]
    return "_".join([f"{number:0{digits}}", *filter(None, words)])[:LONGEST_NAME].rstrip("-_.")
