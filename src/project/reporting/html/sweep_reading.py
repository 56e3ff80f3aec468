"""What a folder with runs tells: a sweep's record, its jobs and runs, and which did best."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from project.errors import InputError
from project.runs.collect import Comparison, compare_by_monitor
from project.runs.results import Run, read_runs
from project.runs.sweep_folder import find_sweep
from project.runs.sweep_jobs import Job


@dataclass(frozen=True)
class Sweep:
    """What a folder with runs tells.

    Args:
        folder: where they lie.
        record: what the sweep is; empty for a folder that is none.
        jobs: on the sweep's record, by the name of their folders.
        runs: all that can be read.
        damaged: why others cannot.
        ranked: those that are done, best first; None if none is.
    """

    folder: Path
    record: dict[str, Any]
    jobs: dict[str, Job]
    runs: list[Run]
    damaged: list[str]
    ranked: Comparison | None

    @property
    def states(self) -> Counter[str]:
        """How many jobs are in which state."""
        named = {run.folder.name for run in self.runs}
        waiting = [job.state for name, job in self.jobs.items() if name not in named]
        return Counter([*(run.state for run in self.runs), *waiting])

    @property
    def best(self) -> Run | None:
        """The best run of the best point."""
        if self.ranked is None:
            return None
        return next(iter(self.ranked.best_first), None)


def read(folder: Path) -> Sweep:
    """Read all runs below a folder.

    Raises:
        InputError: there is none, and no sweep either.
    """
    sweep = find_sweep(folder)
    record, jobs = {}, {}
    if sweep is not None:
        try:
            record = sweep.read_record()
        except InputError:
            record = {}
        jobs = sweep.read_jobs()
    try:
        ranked = compare_by_monitor([folder])
    except InputError:
        ranked = None
    if ranked is not None:
        runs = [*(run for point in ranked.points for run in point.runs), *ranked.unfinished]
        return Sweep(folder, record, jobs, runs, ranked.damaged, ranked)
    try:
        runs, damaged = read_runs([folder])
    except InputError:
        if sweep is None:
            raise
        runs, damaged = [], []  # it was ended before its first job began
    return Sweep(folder, record, jobs, runs, damaged, None)


def refuse_missing(others: Sequence[str]) -> None:
    """Make sure that there are runs in all folders that are to be compared with.

    Raises:
        InputError: there are none in one of them.
    """
    for other in others:
        try:
            read_runs([other])
        except InputError as error:
            raise InputError(f"compare={other}: {error}") from error
