"""Rank runs: what did best, with repetitions of one experiment taken together (see `ranking`)."""

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from project.config.suggestions import did_you_mean
from project.errors import InputError
from project.runs.hparam_diff import Differences, frozen
from project.runs.ranking import REPETITIONS, Score, count_ties, rank, score
from project.runs.results import DURATION, Run, read_runs
from project.runs.sweep_folder import find_sweep
from project.runs.sweep_jobs import Job

SMALLER_IS_BETTER = re.compile(r"loss|error|duration|time|perplexity")


@dataclass(frozen=True)
class Point:
    """Runs that differ in nothing but repetitions, or a single run.

    Args:
        runs: those that are done; at least one.
        asked: number of repetitions that there are to be, if more than in `runs`.
    """

    runs: tuple[Run, ...]
    asked: int = 0

    @property
    def distinct(self) -> list[Run]:
        """The runs, one for each seed and fold."""
        return list({repetition(run): run for run in reversed(self.runs)}.values())[::-1]

    @property
    def unfinished(self) -> int:
        """Number of repetitions that are not done."""
        return max(0, self.asked - len(self.distinct))

    def score(self, metric: str) -> Score:
        """A metric's values over the repetitions."""
        return score([(repetition(run), run.metrics.get(metric)) for run in self.runs], self.asked)

    def mean(self, metric: str) -> float:
        """Mean over the repetitions that have the metric; NaN if none has, or if it is NaN in one."""
        return self.score(metric).mean

    def std(self, metric: str) -> float:
        """Sample standard deviation (over n - 1); NaN for fewer than two repetitions."""
        return self.score(metric).std


@dataclass(frozen=True)
class Comparison:
    """Runs in order of merit.

    Args:
        points: best first; those without a value last.
        by: name of the metric that they are ordered by.
        larger_is_better: of that metric.
        metrics: names of all metrics that any run has, `DURATION` not among them.
        unfinished: runs that are not done.
        damaged: why folders were passed over.
        shown: how the runs that are done differ.
        everywhere: how all runs differ, the unfinished ones too.
        each: whether every run is a point of its own.
    """

    points: list[Point]
    by: str
    larger_is_better: bool
    metrics: list[str]
    unfinished: list[Run]
    damaged: list[str]
    shown: Differences
    everywhere: Differences
    each: bool

    @property
    def count(self) -> int:
        """How many runs are ranked."""
        return sum(len(point.runs) for point in self.points)

    @property
    def repeated(self) -> int:
        """Number of runs with the configuration, seed and fold of another one, which count once."""
        return self.count - sum(len(point.distinct) for point in self.points)

    @property
    def best_first(self) -> list[Run]:
        """All runs with a finite value: those of the best point first, its best seed before the others."""
        sign = -1 if self.larger_is_better else 1
        return [
            run
            for point in self.points
            for run in sorted(point.runs, key=lambda run: sign * run.metrics.get(self.by, math.nan))
            if math.isfinite(run.metrics.get(self.by, math.nan))
        ]

    @property
    def ties(self) -> int:
        """Number of points that are not told from the best one, see `ranking.count_ties`."""
        split, _, kind = self.by.partition("/")
        images = self.points[0].mean(f"{split}/images") if kind == "acc" else math.nan
        scores = [point.score(self.by) for point in self.points]
        return count_ties(scores, larger_is_better=self.larger_is_better, images=images)


def compare(folders: Iterable[str | Path], by: str | None = None, *, each: bool = False) -> Comparison:
    """Read and rank the runs below some folders.

    Args:
        folders: searched to any depth.
        by: name of a metric, or None for the one that all runs watched.
        each: rank every run, instead of the mean over those that differ only in their seed or fold.

    Raises:
        InputError: there is no run, none that is done, no such metric, or no metric that all watched.
    """
    runs, damaged = read_runs(folders)
    done = [run for run in runs if run.done]
    unfinished = [run for run in runs if not run.done]
    if not done:
        states = Counter(run.state for run in unfinished) + Counter(damaged=len(damaged))
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        raise InputError(f"no run is done yet ({counts}); train on with resume=FOLDER, or start anew")
    metrics = list(dict.fromkeys(name for run in done for name in run.metrics if name != DURATION))
    by, larger_is_better = choose_metric(done, [*metrics, DURATION], by)
    everywhere = Differences(runs)
    points = [Point((run,)) for run in done] if each else _group(runs, everywhere)
    return Comparison(
        points=rank(points, lambda point: point.score(by), larger_is_better=larger_is_better),
        by=by,
        larger_is_better=larger_is_better,
        metrics=metrics,
        unfinished=unfinished,
        damaged=damaged,
        shown=Differences(done) if unfinished else everywhere,
        everywhere=everywhere,
        each=each,
    )


def compare_by_monitor(folders: Sequence[str | Path]) -> Comparison:
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


def repetition(run: Run) -> tuple[Hashable, ...]:
    """Seed and fold of a run, by which the runs of one point differ."""
    return tuple(frozen(run.config.get(key)) for key in REPETITIONS)


def choose_metric(runs: Sequence[Run], known: Sequence[str], by: str | None) -> tuple[str, bool]:
    """Find the metric to rank by, and whether larger values of it are better.

    Raises:
        InputError: there is no such metric, or none was named and the runs watched several.
    """
    watched = Counter((run.monitor, run.mode) for run in runs)
    if by is None:
        if len(watched) > 1:
            counts = ", ".join(f"{monitor} ({mode}): {count}" for (monitor, mode), count in watched.items())
            names = " or ".join(dict.fromkeys(f"--by {monitor}" for monitor, _ in watched if monitor))
            raise InputError(
                f"these runs watched different metrics ({counts} runs); say which one ranks them: {names}"
            )
        by = next(iter(watched))[0]
    if by not in known:
        raise InputError(f"--by {by}: no such metric in these runs; {did_you_mean(by, known)}")
    modes = {mode for monitor, mode in watched if monitor == by}
    if len(modes) == 1:
        return by, modes != {"min"}
    return by, not SMALLER_IS_BETTER.search(by)


def _group(runs: Sequence[Run], differences: Differences) -> list[Point]:
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(differences.signature(run), []).append(run)
    waiting = _waiting(runs)
    points = []
    for members in groups.values():
        done = tuple(run for run in members if run.done)
        if done:
            asked = {repetition(run) for run in members}.union(*(waiting[run.folder] for run in members))
            points.append(Point(done, asked=len(asked)))
    return points


def _waiting(runs: Sequence[Run]) -> dict[Path, set[tuple[Hashable, ...]]]:
    """By run, the repetitions of its point that stand on its sweep's record but have left no run."""
    by_name = {run.folder: run for run in runs}
    waiting: dict[Path, set[tuple[Hashable, ...]]] = {folder: set() for folder in by_name}
    for top in dict.fromkeys(folder.parent for folder in by_name):
        groups: dict[Hashable, list[Job]] = {}
        for job in (sweep.read_jobs() if (sweep := find_sweep(top)) else {}).values():
            groups.setdefault(job.point_key, []).append(job)
        for jobs in groups.values():
            missing = [job for job in jobs if top / job.name not in by_name]
            for job in jobs:
                if run := by_name.get(top / job.name):
                    waiting[run.folder] = {_repetition_of(other, run) for other in missing}
    return waiting


def _repetition_of(job: Job, sibling: Run) -> tuple[Hashable, ...]:
    """Seed and fold of a job without a run; what its overrides do not say is as in a run of its point."""
    return tuple(
        frozen(yaml.safe_load(job.settings[key]) if key in job.settings else sibling.config.get(key))
        for key in REPETITIONS
    )
