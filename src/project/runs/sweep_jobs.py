"""A sweep's jobs and what became of them."""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from project.runs.ranking import REPETITIONS
from project.runtime.secrets import redact_text

State = Literal["waiting", "running", "done", "pruned", "failed", "interrupted"]

SUCCEEDED: tuple[State, ...] = ("done", "pruned")
"""States of a job that ended as it should."""
FINISHED: tuple[State, ...] = (*SUCCEEDED, "failed")
"""States in which a job is left alone when the sweep goes on (failed ones unless they are retried)."""

LONGEST_NAME = 60
HIDDEN = ("+callbacks.pruning", "hydra.")
"""Overrides that the framework gives, which no user wants to read."""


@dataclass
class Job:
    """One run of a sweep.

    Args:
        number: its place in the sweep.
        overrides: all of them, as on the command line.
        varied: those of them in which it differs from the sweep's other jobs.
        name: of its folder in the sweep's.
        point: jobs of one point differ in seed or fold alone.
        state: what became of it.
        value: of the monitored metric, once it is done.
        metrics: all that it measured, once it is done.
        error: one line.
        started, finished: UTC, ISO 8601.
        duration_s: seconds of its last attempt.
        attempts: how often it was started.
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

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)

    @property
    def label(self) -> str:
        """What tells it from the others, for a line on the screen."""
        return _label(self.settings)

    @property
    def settings(self) -> dict[str, str]:
        """Values of the keys in which the sweep's jobs differ."""
        pairs = (text.partition("=") for text in shown(self.varied))
        return {key.lstrip("+"): value for key, _, value in pairs}

    @property
    def point_label(self) -> str:
        """Settings by which its point differs from others."""
        return _label({key: value for key, value in self.settings.items() if key not in REPETITIONS})

    @property
    def point_key(self) -> Hashable:
        """Equal for jobs that differ in seed or fold alone; 0.1 and 1e-1 are equal."""
        return frozenset(
            (key, _number(value)) for key, value in self.settings.items() if key not in REPETITIONS
        )

    @property
    def repetition(self) -> tuple[Hashable, ...]:
        """Seed and fold, by which the jobs of one point differ."""
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
    """The overrides that a user gave, without secrets."""
    return [redact_text(text) for text in overrides if not text.startswith(HIDDEN)]


def quoted(text: str) -> str:
    """A string in the grammar of Hydra's overrides."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def in_grammar(value: Any) -> str:
    """A plain value in the grammar of Hydra's overrides."""
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
    """A value as tables show it: a number with at most four digits that count."""
    if re.fullmatch(r"-?\d*\.\d{4,}(e[-+]?\d+)?", value.lower()):
        return f"{float(value):.4g}"
    return value


def folder_name(number: int, varied: Sequence[str], digits: int = 1) -> str:
    """A job's folder: its number, and the values in which it differs.

    Values of groups stand alone (`cnn`), others behind the last part of their key (`lr0.1`). No character
    needs quoting, in a shell or in an override.
    """
    parts = []
    for text in shown(varied):
        key, _, value = text.partition("=")
        key = key.lstrip("+~").rpartition(".")[2].rpartition("/")[2]
        value = short(value)
        number_like = re.fullmatch(r"[-+0-9.]+(e[-+]?\d+)?|true|false|null", value.lower())
        parts.append(f"{key}{value}" if number_like else value or key)
    words = [re.sub(r"[^\w.+-]+", "-", part).strip("-") for part in parts]
    return "_".join([f"{number:0{digits}}", *filter(None, words)])[:LONGEST_NAME].rstrip("-_.")
