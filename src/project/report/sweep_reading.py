"""What a folder with runs tells: a sweep's record, its jobs and runs, and which did best."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from project.errors import InputError
from project.runs.compare import Comparison, compare
from project.runs.results import DURATION, Run, read_runs
from project.sweeps.folder import find_sweep
from project.sweeps.jobs import Job


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
        """The run that did best."""
        if self.ranked is None:
            return None
        by, sign = self.ranked.by, 1 if self.ranked.larger_is_better else -1
        done = [run for point in self.ranked.points for run in point.runs]
        known = [run for run in done if math.isfinite(run.metrics.get(by, math.nan))]
        return max(known, key=lambda run: sign * run.metrics[by], default=None)


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
        jobs = _jobs(folder)
    try:
        ranked = rank([folder])
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


def _jobs(folder: Path) -> dict[str, Job]:
    sweep = find_sweep(folder)
    try:
        return {job.name: job for job in sweep.ledger.read().values()} if sweep else {}
    except (OSError, ValueError, TypeError):  # damaged: the runs' folders tell as much
        return {}


def rank(folders: Sequence[Path]) -> Comparison:
    """Rank runs by the metric that they watched, or that most of them did.

    Raises:
        InputError: none is done.
    """
    try:
        return compare(folders)
    except InputError:
        done = [run for run in read_runs(folders)[0] if run.done]
        if not done:
            raise
        watched = Counter(run.monitor for run in done if run.monitor in run.metrics)
        return compare(folders, watched.most_common(1)[0][0] if watched else DURATION)


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
