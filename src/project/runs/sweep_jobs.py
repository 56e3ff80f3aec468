"""Jobs of a sweep: their overrides, states and names, and the ledger on disk."""

import json
import os
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from project.errors import InputError
from project.runs.ranking import REPETITIONS
from project.runtime.atomic_files import Outage, atomic_replacement, sync
from project.runtime.secrets import redact, redact_text

State = Literal["waiting", "running", "done", "pruned", "paused", "eliminated", "failed", "interrupted"]

SUCCEEDED: tuple[State, ...] = ("done", "pruned", "paused")
FINISHED: tuple[State, ...] = (*SUCCEEDED, "eliminated", "failed")
"""States of jobs that a resumed sweep does not repeat."""

MAX_NAME_LENGTH = 60
CONFIG_FLAGS = ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp")
"""Flags of Hydra that choose configuration files; each takes a value."""
HIDDEN_PREFIXES = ("+callbacks.pruning", "+callbacks.pause", "hydra.")
"""Prefixes of overrides that the sweep adds itself."""


@dataclass
class Job:
    """Job of a sweep: one run."""

    number: int  # index in the sweep
    overrides: list[str]  # all overrides, as on the command line
    varied: list[str]  # overrides by which the sweep's jobs differ
    name: str  # of the run folder
    point: int = 0  # index of the point; its jobs differ only in seed or fold
    state: State = "waiting"
    value: float | None = None  # of the monitored metric, once done
    metrics: dict[str, float] = field(default_factory=dict)  # all metrics, once done
    error: str | None = None  # on one line
    started: str | None = None  # UTC, ISO 8601
    finished: str | None = None
    duration_s: float | None = None  # of the last attempt
    attempts: int = 0
    pause_values: list[float | None] = field(default_factory=list)  # value at each pause by a search
    parent: int | None = None  # job of a population from whose checkpoint this one continues
    start_epoch: int = 0  # epochs of that checkpoint
    replaced: int | None = None  # job whose place in the population this one takes

    @property
    def label(self) -> str:
        """Settings that distinguish the job from others, on one line."""
        return _label(self.settings)

    @property
    def settings(self) -> dict[str, str]:
        """Values of the keys in which the sweep's jobs differ."""
        pairs = (text.partition("=") for text in visible_overrides(self.varied))
        return {key.lstrip("+"): value for key, _, value in pairs}

    @property
    def point_label(self) -> str:
        """Settings that distinguish the job's point from others, on one line."""
        return _label({key: value for key, value in self.settings.items() if key not in REPETITIONS})

    @property
    def point_key(self) -> frozenset[tuple[str, float | str]]:
        """Value that is equal for jobs of the same point; 0.1 equals 1e-1.

        A job that continues from another one's checkpoint is a point of its own.
        """
        settings = {key: value for key, value in self.settings.items() if key not in REPETITIONS}
        if self.parent is not None:
            settings["job"] = str(self.number)
        return frozenset((key, parse_number(value)) for key, value in settings.items())

    @property
    def repetition(self) -> tuple[Hashable, ...]:
        """Seed and fold."""
        return tuple(parse_number(self.settings.get(key, "")) for key in REPETITIONS)


def _label(settings: Mapping[str, str]) -> str:
    parts = (f"{key.rpartition('.')[2]}={shorten_number(value)}" for key, value in settings.items())
    return " ".join(parts) or "the only point"


def parse_number(value: str) -> float | str:
    """Return a value as a number if it is one: 0.1 equals 1e-1."""
    try:
        return float(value)
    except ValueError:
        return value


def visible_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the overrides by the user, with secrets redacted."""
    return [redact_text(text) for text in overrides if not text.startswith(HIDDEN_PREFIXES)]


def config_flags(words: Sequence[str]) -> list[str]:
    """Return the flags of a command that choose configuration files, such as `--config-dir DIR`."""
    found: list[str] = []
    for number, word in enumerate(words):
        flag, equals, _ = word.partition("=")
        if flag in CONFIG_FLAGS:
            found += words[number : number + 1 if equals else number + 2]
    return found


def quote_override(text: str) -> str:
    """Quote a string for a Hydra override."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def to_override_value(value: Any) -> str:
    """Format a plain value for a Hydra override."""
    if isinstance(value, str):
        return quote_override(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{to_override_value(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(to_override_value, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def shorten_number(value: str) -> str:
    """Shorten a number to four significant digits; return other values unchanged."""
    if re.fullmatch(r"-?\d*\.\d{4,}(e[-+]?\d+)?", value.lower()):
        return f"{float(value):.4g}"
    return value


def folder_name(number: int, varied: Sequence[str], digits: int = 1) -> str:
    """Return the name of a job's folder: its number and its varied values.

    Words appear without their key (`cnn`), numbers after the last part of their key (`lr0.1`). No character
    needs quotes in a shell or an override.
    """
    parts = []
    for text in visible_overrides(varied):
        key, _, value = text.partition("=")
        key = key.lstrip("+~").rpartition(".")[2].rpartition("/")[2]
        value = shorten_number(value)
        is_number = re.fullmatch(r"[-+0-9.]+(e[-+]?\d+)?|true|false|null", value.lower())
        parts.append(f"{key}{value}" if is_number else value or key)
    words = [re.sub(r"[^\w.+-]+", "-", part).strip("-") for part in parts]
    return "_".join([f"{number:0{digits}}", *filter(None, words)])[:MAX_NAME_LENGTH].rstrip("-_.")


class Ledger:
    """File with a JSON line per change of a job; the last line of a job counts.

    A line is on the disk when `write` returns. An incomplete last line of a killed process is dropped. A line
    that cannot be written is reported, and written with the next one.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._unwritten: list[Job] = []
        self._outage = Outage(file, "the sweep continues; the job folders contain the results")

    def read(self) -> dict[int, Job]:
        """Return the jobs by number, in order.

        Raises:
            InputError: a line other than an incomplete last one is damaged.
        """
        jobs: dict[int, Job] = {}
        if self.file.exists():
            for number, line in enumerate(self.file.read_bytes().split(b"\n")[:-1], start=1):
                try:
                    job = Job(**json.loads(line.decode()))
                except (ValueError, TypeError) as error:
                    raise InputError(
                        f"{self.file}: line {number} is damaged; remove it: earlier lines and the job's "
                        "folder have its state"
                    ) from error
                jobs[job.number] = job
        jobs |= {job.number: job for job in self._unwritten}
        return dict(sorted(jobs.items()))

    @property
    def outage(self) -> str:
        """Reason why jobs could not be recorded, after one more attempt; empty if all are recorded."""
        if self._unwritten:
            self.write()
        return self._outage.reason

    def write(self, *jobs: Job) -> None:
        """Record the current state of jobs.

        Raises:
            OSError: the file does not exist and cannot be made.
        """
        self._unwritten += [replace(job) for job in jobs]
        try:
            self._append(self._unwritten)
        except OSError as error:
            if not self.file.exists():
                raise
            self._outage.begin(error)
        else:
            self._unwritten = []
            self._outage.end()

    def add(self, *jobs: Job) -> None:
        """Record jobs together: all of them or, if the process is killed, none.

        Raises:
            OSError: the file cannot be written.
        """
        drop_torn_line(self.file)
        known = self.file.read_bytes() if self.file.exists() else b""
        with atomic_replacement(self.file) as partial:
            partial.write_bytes(known + _lines(jobs))
            sync(partial)

    def _append(self, jobs: Sequence[Job]) -> None:
        if not self.file.exists():  # the first jobs of a sweep are recorded together
            self.add(*jobs)
            return
        drop_torn_line(self.file)
        with self.file.open("ab") as stream:
            stream.write(_lines(jobs))
            stream.flush()
            os.fsync(stream.fileno())


def _lines(jobs: Sequence[Job]) -> bytes:
    return "".join(json.dumps(redact(asdict(job))) + "\n" for job in jobs).encode()


def drop_torn_line(file: Path) -> None:
    """Truncate a file after its last complete line, if there is such a file."""
    if not file.exists():
        return
    with file.open("rb") as stream:  # opened for writing only if necessary: the file may be read-only
        size = os.fstat(stream.fileno()).st_size
        if size and os.pread(stream.fileno(), 1, size - 1) != b"\n":
            os.truncate(file, stream.read().rfind(b"\n") + 1)
