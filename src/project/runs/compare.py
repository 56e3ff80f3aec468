"""Rank runs: what did best, with repetitions of one experiment taken together."""

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from project.errors import InputError
from project.nearest import did_you_mean
from project.runs.differences import Differences
from project.runs.results import DURATION, Run, read_runs

SMALLER_IS_BETTER = re.compile(r"loss|error|duration|time|perplexity")


@dataclass(frozen=True)
class Point:
    """Runs that differ in nothing but repetitions, or a single run.

    Args:
        runs: those that are done; at least one.
        unfinished: how many more there are that are not done.
    """

    runs: tuple[Run, ...]
    unfinished: int = 0

    def values(self, metric: str) -> list[float]:
        """A metric's values in the runs that have it."""
        return [run.metrics[metric] for run in self.runs if metric in run.metrics]

    def mean(self, metric: str) -> float:
        """Mean over the runs that have the metric; NaN if none has, or if it is NaN in one."""
        values = self.values(metric)
        return math.fsum(values) / len(values) if values and not _clash(values) else math.nan

    def std(self, metric: str) -> float:
        """Sample standard deviation (over n - 1); NaN for fewer than two runs."""
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan


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

    def merit(point: Point) -> tuple[bool, float]:
        mean = point.mean(by)
        return math.isnan(mean), -mean if larger_is_better else mean

    return Comparison(
        points=sorted(points, key=merit),
        by=by,
        larger_is_better=larger_is_better,
        metrics=metrics,
        unfinished=unfinished,
        damaged=damaged,
        shown=Differences(done) if unfinished else everywhere,
        everywhere=everywhere,
        each=each,
    )


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
    points = []
    for members in groups.values():
        done = tuple(run for run in members if run.done)
        if done:
            points.append(Point(done, unfinished=len(members) - len(done)))
    return points


def _clash(values: Sequence[float]) -> bool:
    """Whether both infinities are there: their sum is not defined."""
    return math.inf in values and -math.inf in values
