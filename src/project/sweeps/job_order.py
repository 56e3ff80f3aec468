"""Order in which the waiting jobs of a sweep start."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from project.errors import InputError
from project.runs.sweep_jobs import Job, parse_number
from project.runtime.text import did_you_mean

Settings = frozenset[tuple[str, float | str]]


@dataclass(frozen=True)
class JobOrder:
    """Order of jobs: those with priority first, then the longest ones if requested, then as written.

    Args:
        longest_first: start long jobs first, so that few devices idle at the end. On m equal devices and with
            known durations, a sweep then lasts at most 4/3 - 1/(3m) times as long as in the best order
            (Graham 1969, "Bounds on Multiprocessing Timing Anomalies").
        priority: for a key, the value or values whose jobs start first, in this order; earlier keys decide
            before later ones.
    """

    longest_first: bool = False
    priority: Mapping[str, Any] = field(default_factory=dict)


AS_WRITTEN = JobOrder()


class JobQueue:
    """Waiting jobs of a sweep, in an order that depends only on the record of all jobs.

    A job is expected to last as long as the most similar finished jobs, on average: those of the same point
    or, without any, those that share the most settings whose key has no dot, such as `model=cnn`, and among
    these the most other settings. A job with such a setting that no job has started with yet precedes the
    others, in order to measure its duration.

    Args:
        jobs: all jobs of the sweep; those that wait are in the queue.
        order: order of the jobs.

    Raises:
        InputError: the jobs do not differ in a key with priority, or no job has its value.
    """

    def __init__(self, jobs: Sequence[Job], order: JobOrder) -> None:
        self._longest_first = order.longest_first
        priority = {key: _numbers(values) for key, values in order.priority.items()}
        self._ranks = {job.number: rank for job, rank in zip(jobs, _ranks(jobs, priority), strict=True)}
        self._waiting = [job for job in jobs if job.state == "waiting"]
        self._waiting.sort(key=lambda job: self._ranks[job.number])
        self._points: dict[int, Settings] = {}
        self._durations: dict[Settings, _ExpectedDuration] = {}
        self._started: Settings = frozenset()
        self._measured: set[int] = set()
        if self._longest_first:
            self._points = {job.number: job.point_key for job in jobs}
            self._durations = {self._points[job.number]: _ExpectedDuration() for job in self._waiting}
            self.record(jobs)

    def pop(self) -> Job | None:
        """Remove and return the job that starts next; None if no job waits."""
        if not self._waiting:
            return None
        first = min(self._waiting, key=self._place) if self._longest_first else self._waiting[0]
        self._waiting.remove(first)
        self._started |= _options(self._points.get(first.number, frozenset()))
        return first

    def record(self, jobs: Iterable[Job]) -> None:
        """Take account of the jobs that have started, and of the durations of finished ones."""
        for job in jobs if self._longest_first else ():
            point = self._points[job.number]
            if job.started is not None:
                self._started |= _options(point)
            # The duration is that of the last attempt, which a resumed job began in the middle.
            if job.state == "done" and job.attempts == 1 and job.number not in self._measured:
                self._measured.add(job.number)
                for other, expected in self._durations.items():
                    expected.add(_similarity(point, other), job.duration_s or 0.0)

    def _place(self, job: Job) -> tuple[list[int], bool, float]:
        point = self._points[job.number]
        is_measured = _options(point) <= self._started
        return self._ranks[job.number], is_measured, -self._durations[point].mean_s


class _ExpectedDuration:
    """Mean duration of the jobs with the highest similarity."""

    def __init__(self) -> None:
        self.similarity = (-1, -1)
        self.total_s = 0.0
        self.count = 0

    @property
    def mean_s(self) -> float:
        return self.total_s / self.count if self.count else math.inf

    def add(self, similarity: tuple[int, int], duration_s: float) -> None:
        if similarity > self.similarity:
            self.similarity, self.total_s, self.count = similarity, 0.0, 0
        if similarity == self.similarity:
            self.total_s += duration_s
            self.count += 1


def _options(point: Settings) -> Settings:
    """Return the settings whose key has no dot."""
    return frozenset(setting for setting in point if "." not in setting[0])


def _similarity(first: Settings, second: Settings) -> tuple[int, int]:
    """Return the numbers of shared settings without a dot in their key, and of all shared settings."""
    shared = first & second
    return len(_options(shared)), len(shared)


def _numbers(values: Any) -> list[float | str]:
    several = isinstance(values, Sequence) and not isinstance(values, str)
    return [parse_number(str(value)) for value in (values if several else [values])]


def _ranks(jobs: Sequence[Job], priority: Mapping[str, list[float | str]]) -> list[list[int]]:
    """Return the rank of each job by each key with priority, 0 for its first value."""
    if not priority:
        return [[] for _ in jobs]
    settings = [{key: parse_number(value) for key, value in job.settings.items()} for job in jobs]
    for key, values in priority.items():
        known = dict.fromkeys(one[key] for one in settings if key in one)
        for value in values:
            if value not in known:
                problem = "no job has this value" if known else "the jobs do not differ in this key"
                advice = (
                    did_you_mean(str(value), map(str, known)) if known else did_you_mean(key, settings[0])
                )
                raise InputError(f"hydra.sweeper.priority.{key}={value}: {problem}; {advice}")
    return [
        [[*values, one.get(key)].index(one.get(key)) for key, values in priority.items()] for one in settings
    ]
