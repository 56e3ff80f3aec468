"""Points of runs in their order: repetitions of one experiment taken together, the best first.

`runs.ranking` has the rule. Needs no torch and nothing that draws.
"""

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from project.errors import InputError
from project.runs.hparam_diff import Differences, frozen
from project.runs.ranking import REPETITIONS, Score, count_ties, rank, score, tie_note
from project.runs.results import DURATION, Run, read_runs
from project.runs.sweep_folder import find_sweep
from project.runs.sweep_jobs import Job
from project.runtime.text import did_you_mean, plural

SMALLER_IS_BETTER = re.compile(r"loss|error|duration|time|perplexity")
RESERVED = ("#", "n", "time", "folder")
"""Column names of tables that no key is shortened to."""


@dataclass(frozen=True)
class Point:
    """Finished runs that differ in seed or fold only, or a single run.

    Args:
        runs: at least one.
        asked: number of repetitions planned, if more than in `runs` (0).
    """

    runs: tuple[Run, ...]
    asked: int = 0

    @property
    def distinct(self) -> list[Run]:
        """Runs, one for each seed and fold."""
        return list({repetition(run): run for run in reversed(self.runs)}.values())[::-1]

    @property
    def unfinished(self) -> int:
        """Number of repetitions that are not done."""
        return max(0, self.asked - len(self.distinct))

    def score(self, metric: str) -> Score:
        """Return a metric's values over the repetitions."""
        return score([(repetition(run), run.metrics.get(metric)) for run in self.runs], self.asked)

    def mean(self, metric: str) -> float:
        """Return the mean over the repetitions that have the metric; NaN if none has, or one is NaN."""
        return self.score(metric).mean

    def std(self, metric: str) -> float:
        """Return the sample standard deviation (over n - 1); NaN for fewer than two repetitions."""
        return self.score(metric).std


@dataclass(frozen=True)
class Comparison:
    """Ranked points.

    Args:
        points: best first; those without a value last.
        by: name of the ranking metric.
        larger_is_better: of that metric.
        metrics: names of all metrics that any run has, but for `DURATION`.
        unfinished: runs that are not done.
        damaged: reasons why folders were skipped.
        shown: differences between the finished runs.
        everywhere: differences between all runs.
        each: every run is a point of its own.
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
        """Number of ranked runs."""
        return sum(len(point.runs) for point in self.points)

    @property
    def repeated(self) -> int:
        """Number of runs with the configuration, seed and fold of another one, which count once."""
        return self.count - sum(len(point.distinct) for point in self.points)

    @property
    def best_first(self) -> list[Run]:
        """Runs with a finite value: those of the best point first, its best seed before the others."""
        sign = -1 if self.larger_is_better else 1
        return [
            run
            for point in self.points
            for run in sorted(point.runs, key=lambda run: sign * run.metrics.get(self.by, math.nan))
            if math.isfinite(run.metrics.get(self.by, math.nan))
        ]

    @property
    def best(self) -> Run | None:
        """Best run of the best point; None if no run has a finite value."""
        return next(iter(self.best_first), None)

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
        by: name of the ranking metric (the one that all runs monitored).
        each: rank every run by itself instead of means over seeds and folds (false).

    Raises:
        InputError: no run, none that is done, no such metric, or no metric that all monitored.
    """
    runs, damaged = read_runs(folders)
    done = [run for run in runs if run.done]
    unfinished = [run for run in runs if not run.done]
    if not done:
        states = Counter(run.state for run in unfinished) + Counter(damaged=len(damaged))
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        raise InputError(f"no run is done yet ({counts}); continue with resume=FOLDER, or start anew")
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
    """Rank runs by the metric that all or most of them monitored.

    Raises:
        InputError: none is done.
    """
    try:
        return compare(folders)
    except InputError:
        done = [run for run in read_runs(folders)[0] if run.done]
        if not done:
            raise
        monitored = Counter(run.monitor for run in done if run.monitor in run.metrics)
        return compare(folders, monitored.most_common(1)[0][0] if monitored else DURATION)


def repetition(run: Run) -> tuple[Hashable, ...]:
    """Return seed and fold of a run, by which the runs of one point differ."""
    return tuple(frozen(run.config.get(key)) for key in REPETITIONS)


def choose_metric(runs: Sequence[Run], known: Sequence[str], by: str | None) -> tuple[str, bool]:
    """Return the ranking metric, and whether larger values of it are better.

    Raises:
        InputError: no such metric, or none named where the runs monitored several.
    """
    monitored = Counter((run.monitor, run.mode) for run in runs)
    if by is None:
        if len(monitored) > 1:
            counts = ", ".join(f"{monitor} ({mode}): {count}" for (monitor, mode), count in monitored.items())
            names = " or ".join(dict.fromkeys(f"by={monitor}" for monitor, _ in monitored if monitor))
            raise InputError(f"by=null: these runs monitored different metrics ({counts} runs); give {names}")
        by = next(iter(monitored))[0]
    if by not in known:
        raise InputError(f"by={by}: no such metric in these runs; {did_you_mean(by, known)}")
    modes = {mode for monitor, mode in monitored if monitor == by}
    if len(modes) == 1:
        return by, modes != {"min"}
    return by, not SMALLER_IS_BETTER.search(by)


def _group(runs: Sequence[Run], differences: Differences) -> list[Point]:
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(differences.signature(run), []).append(run)
    missing = _missing_repetitions(runs)
    points = []
    for members in groups.values():
        done = tuple(run for run in members if run.done)
        if done:
            asked = {repetition(run) for run in members}.union(*(missing[run.folder] for run in members))
            points.append(Point(done, asked=len(asked)))
    return points


def _missing_repetitions(runs: Sequence[Run]) -> dict[Path, set[tuple[Hashable, ...]]]:
    """Return for each run the repetitions of its point that its sweep records but that left no run."""
    by_folder = {run.folder: run for run in runs}
    found: dict[Path, set[tuple[Hashable, ...]]] = {folder: set() for folder in by_folder}
    for top in dict.fromkeys(folder.parent for folder in by_folder):
        groups: dict[Hashable, list[Job]] = {}
        for job in (sweep.read_jobs() if (sweep := find_sweep(top)) else {}).values():
            groups.setdefault(job.point_key, []).append(job)
        for jobs in groups.values():
            missing = [job for job in jobs if top / job.name not in by_folder]
            for job in jobs:
                if run := by_folder.get(top / job.name):
                    found[run.folder] = {_repetition_of(other, run) for other in missing}
    return found


def _repetition_of(job: Job, sibling: Run) -> tuple[Hashable, ...]:
    """Return seed and fold of a job without a run; keys it does not override are as in a run of its point."""
    return tuple(
        frozen(yaml.safe_load(job.settings[key]) if key in job.settings else sibling.config.get(key))
        for key in REPETITIONS
    )


def best_line(comparison: Comparison) -> str:
    """Return the best point of a comparison with its value, and its best run, in one line."""
    best, run = comparison.points[0], comparison.best_first[0]
    told = comparison.shown.told
    keys = [f"{key} {comparison.shown.texts([run], key)[0]}" for key in told]
    of = f"the best of {plural(len(comparison.points), 'point')}"
    line = f"{', '.join(keys) or 'the only point'}, {of}: {comparison.by} {best.score(comparison.by)}"
    return "; ".join(filter(None, [f"{line}, its best run {run.folder.name}", tie_note(comparison.ties)]))


def score_texts(points: Sequence[Point], metric: str) -> list[str]:
    """Return a metric's mean ± standard deviation of each point, with equal decimals; empty without one."""
    means = [point.mean(metric) for point in points]
    largest = max((abs(mean) for mean in means if math.isfinite(mean)), default=1.0)
    form = ".4f" if 0.01 <= largest < 1000 else ".4g"
    texts = []
    for point, mean in zip(points, means, strict=True):
        std = point.std(metric)
        text = f"{mean:{form}}" if point.score(metric).values else ""
        texts.append(text if math.isnan(std) else f"{text} ± {std:{form}}")
    return texts
