"""Comparisons of runs: ranked points, each with the repetitions of one configuration."""

import math
import sys
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from project.errors import InputError
from project.runs.hparam_diff import Differences
from project.runs.intervals import num_cases
from project.runs.metric_names import is_smaller_better
from project.runs.ranking import REPETITIONS, Score, find_ties, rank, score, tie_note
from project.runs.results import DURATION, Run, comparable_text, read_runs
from project.runs.run_folder import RunFolder, latest_run
from project.runs.sweep_folder import find_sweep
from project.runs.sweep_jobs import Job
from project.runtime.atomic_files import refuse_url
from project.runtime.text import did_you_mean, plural

LAST = "last"
"""Value of `run=` that means the run or sweep started last."""
RESERVED = ("#", "n", "time", "run", "best run")
"""Column names of tables, to which no key is shortened."""


@dataclass(frozen=True)
class Point:
    """Runs that differ only in seed or fold, or a single run.

    Args:
        runs: finished runs, at least one.
        planned: planned number of repetitions, if more than in `runs`.
    """

    runs: tuple[Run, ...]
    planned: int = 0

    @property
    def distinct(self) -> list[Run]:
        """The runs, one per seed and fold."""
        return list({_repetition(run): run for run in reversed(self.runs)}.values())[::-1]

    def is_ranked(self, metric: str) -> bool:
        """Return True if the mean of a metric is a number."""
        return math.isfinite(self.mean(metric))

    @property
    def unfinished(self) -> int:
        """Number of unfinished repetitions."""
        return max(0, self.planned - len(self.distinct))

    def score(self, metric: str) -> Score:
        """Return a metric's values over the repetitions."""
        return score([(_repetition(run), run.metrics.get(metric)) for run in self.runs], self.planned)

    def mean(self, metric: str) -> float:
        """Return the mean over the repetitions with the metric; NaN without any, or if one is NaN."""
        return self.score(metric).mean

    def std(self, metric: str) -> float:
        """Return the sample standard deviation (over n - 1); NaN for fewer than two repetitions."""
        return self.score(metric).std


@dataclass(frozen=True)
class Comparison:
    """Ranking of runs.

    Args:
        points: best first; those without a value last.
        by: metric of the ranking.
        larger_is_better: larger values of `by` are better.
        metrics: names of all metrics of the runs, except `DURATION`.
        unfinished: unfinished runs.
        damaged: a line per damaged run folder, which is left out.
        shown: differences of the finished runs.
        everywhere: differences of all runs, including unfinished ones.
        each: each point is a single run.
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
        """Number of runs with the configuration, seed and fold of another run, which count once."""
        return self.count - sum(len(point.distinct) for point in self.points)

    @property
    def best_first(self) -> list[Run]:
        """All runs with a finite value, the best point first, and the best run of a point first."""
        sign = -1 if self.larger_is_better else 1

        def value(run: Run) -> float:
            return sign * run.metrics.get(self.by, math.nan)

        runs = (run for point in self.points for run in sorted(point.runs, key=value))
        return [run for run in runs if math.isfinite(value(run))]

    @property
    def best(self) -> Run | None:
        """Best run of the best point; None if no run has a finite value."""
        return next(iter(self.best_first), None)

    @property
    def tied(self) -> list[int]:
        """Indices of the points that tie with the best one, see `ranking.find_ties`."""
        scores = [point.score(self.by) for point in self.points]
        images = num_cases(self.points[0].runs[0].metrics, self.by)
        return find_ties(scores, larger_is_better=self.larger_is_better, images=images)

    @property
    def ties(self) -> int:
        """Number of points that tie with the best one."""
        return len(self.tied)


def compare(
    folders: Iterable[str | Path], by: str | None = None, *, each: bool = False, guess: bool = False
) -> Comparison:
    """Read and rank the runs below some folders.

    Args:
        folders: searched to any depth.
        by: name of a metric [None: the metric that the runs monitored].
        each: rank single runs, instead of means over seeds and folds.
        guess: if the runs monitored different metrics, rank by the most frequent one.

    Raises:
        InputError: no run, no finished run, no such metric, or several monitored metrics without `guess`.
    """
    runs, damaged = read_runs(folders)
    return compare_runs(runs, damaged, by, each=each, guess=guess)


def compare_runs(
    runs: Sequence[Run],
    damaged: Sequence[str] = (),
    by: str | None = None,
    *,
    each: bool = False,
    guess: bool = False,
) -> Comparison:
    """Rank runs that were read before.

    Args:
        runs: at least one.
        damaged: a line per damaged run folder.
        by: as in `compare`, like `each` and `guess`.
        each: rank single runs.
        guess: accept runs that monitored different metrics.

    Raises:
        InputError: no finished run, no such metric, or several monitored metrics without `guess`.
    """
    done = [run for run in runs if run.done]
    unfinished = [run for run in runs if not run.done]
    if not done:
        states = Counter(run.state for run in unfinished) + Counter(damaged=len(damaged))
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        raise InputError(f"no finished run ({counts}); continue one with resume=FOLDER, or start a new one")
    metrics = list(dict.fromkeys(name for run in done for name in run.metrics if name != DURATION))
    by, larger_is_better = _choose_metric(done, [*metrics, DURATION], by, guess)
    everywhere = Differences(runs)
    points = [Point((run,)) for run in done] if each else _group(runs, everywhere)
    return Comparison(
        points=rank(points, lambda point: point.score(by), larger_is_better=larger_is_better),
        by=by,
        larger_is_better=larger_is_better,
        metrics=metrics,
        unfinished=unfinished,
        damaged=list(damaged),
        shown=Differences(done) if unfinished else everywhere,
        everywhere=everywhere,
        each=each,
    )


def _repetition(run: Run) -> tuple[Hashable, ...]:
    """Return the seed and fold of a run."""
    return tuple(comparable_text(run.config.get(key)) for key in REPETITIONS)


def _choose_metric(
    runs: Sequence[Run], known: Sequence[str], by: str | None, guess: bool
) -> tuple[str, bool]:
    """Return the metric to rank by, and true if larger values are better."""
    monitored = Counter((run.monitor, run.mode) for run in runs)
    if by is None and (guess or len(monitored) == 1):
        named = Counter(run.monitor for run in runs if run.monitor in run.metrics or not guess)
        by = named.most_common(1)[0][0] if named else DURATION
    if by is None:
        counts = ", ".join(f"{monitor} ({mode}): {count}" for (monitor, mode), count in monitored.items())
        names = " or ".join(dict.fromkeys(f"by={monitor}" for monitor, _ in monitored if monitor))
        raise InputError(f"by=null: these runs monitored different metrics ({counts} runs); give {names}")
    if by not in known:
        raise InputError(f"by={by}: no such metric in these runs; {did_you_mean(by, known)}")
    modes = {mode for monitor, mode in monitored if monitor == by}
    return by, modes != {"min"} if len(modes) == 1 else not is_smaller_better(by)


def _group(runs: Sequence[Run], differences: Differences) -> list[Point]:
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(differences.signature(run), []).append(run)
    missing = _missing_repetitions(runs)
    points = []
    for members in groups.values():
        done = tuple(run for run in members if run.done)
        if done:
            planned = {_repetition(run) for run in members}.union(*(missing[run.folder] for run in members))
            points.append(Point(done, planned=len(planned)))
    return points


def _missing_repetitions(runs: Sequence[Run]) -> dict[Path, set[tuple[Hashable, ...]]]:
    """Return, for each run, the repetitions of its point that its sweep planned and that have no run."""
    by_folder = {run.folder: run for run in runs}
    missing: dict[Path, set[tuple[Hashable, ...]]] = {folder: set() for folder in by_folder}
    for top in dict.fromkeys(folder.parent for folder in by_folder):
        groups: dict[Hashable, list[Job]] = {}
        for job in (sweep.read_jobs() if (sweep := find_sweep(top)) else {}).values():
            groups.setdefault(job.point_key, []).append(job)
        for jobs in groups.values():
            lost = [job for job in jobs if top / job.name not in by_folder]
            for job in jobs:
                if run := by_folder.get(top / job.name):
                    missing[run.folder] = {_repetition_of(other, run) for other in lost}
    return missing


def _repetition_of(job: Job, sibling: Run) -> tuple[Hashable, ...]:
    """Return seed and fold of a job without a run; values not overridden are those of a sibling run."""
    return tuple(
        comparable_text(yaml.safe_load(job.settings[key]) if key in job.settings else sibling.config.get(key))
        for key in REPETITIONS
    )


def best_line(comparison: Comparison) -> str:
    """Return one line with the best point of a comparison, its score and its best run."""
    best, run = comparison.points[0], comparison.best_first[0]
    keys = [f"{key} {comparison.shown.texts([run], key)[0]}" for key in comparison.shown.leading]
    of = f"the best of {plural(len(comparison.points), 'point')}"
    line = f"{', '.join(keys) or 'the only point'}, {of}: {comparison.by} {best.score(comparison.by)}"
    return "; ".join(filter(None, [f"{line}, its best run {run.folder.name}", tie_note(comparison.ties)]))


def score_texts(points: Sequence[Point], metric: str) -> list[str]:
    """Return mean ± standard deviation of a metric per point, with equal decimals; empty without values."""
    means = [point.mean(metric) for point in points]
    largest = max((abs(mean) for mean in means if math.isfinite(mean)), default=1.0)
    form = ".4f" if 0.01 <= largest < 1000 else ".4g"
    texts = []
    for point, mean in zip(points, means, strict=True):
        std = point.std(metric)
        value = f"{mean:{form}}" if point.score(metric).values else ""
        texts.append(value if math.isnan(std) else f"{value} ± {std:{form}}")
    return texts


def find_trained(wanted: str | Path, outputs: str | Path = "outputs", *, key: str = "run") -> RunFolder:
    """Return the run that a command reads; for a sweep, print the chosen run to standard error.

    Args:
        wanted: folder of a run or of a sweep (the best run of its best point), or `last`.
        outputs: folder in which `last` is searched.
        key: key on the command line, for messages.

    Raises:
        InputError: there is no such run.
    """
    folder = find_last(outputs, key=key) if str(wanted) == LAST else Path(wanted).expanduser()
    if line := refuse_url(key, str(wanted)):
        raise InputError(line)
    if find_sweep(folder) is not None:
        comparison = _compare(folder, key)
        print(f"{key}={wanted}: {best_line(comparison)}", file=sys.stderr)
        return RunFolder(comparison.best_first[0].folder)
    run = RunFolder(folder)
    if not folder.is_dir():
        what = "a file, but a folder is needed" if folder.is_file() else "no such folder"
        raise InputError(f"{key}={wanted}: {what}; give the folder of a run or of a sweep, or last")
    if not run.config_file.exists():
        inside = sorted(file.parent for file in folder.glob("**/config.yaml") if file.parent.name != ".hydra")
        hint = f"name one below it, such as {inside[-1]}" if inside else "give a folder that train.py made"
        raise InputError(f"{key}={wanted}: no run folder (config.yaml is missing); {hint}")
    return run


def find_last(outputs: str | Path, *, key: str = "run") -> Path:
    """Return the folder of the run or sweep that was started last; for a job of a sweep, the sweep."""
    last = latest_run(Path(outputs).expanduser())
    if last is None:
        raise InputError(f"{key}=last: no run in {outputs}; train one, or set outputs=FOLDER")
    around = last.path.parent
    return around if find_sweep(around) is not None else last.path


def find_best(folder: Path, *, key: str = "run") -> list[Run]:
    """Return the runs of a sweep with a finite value, the best first; refuse a sweep without any."""
    return _compare(folder, key).best_first


def _compare(folder: Path, key: str) -> Comparison:
    try:
        comparison = compare([folder], guess=True)
    except InputError:
        comparison = None
    if comparison is None or not comparison.best_first:
        runs, _ = read_runs([folder])
        states = ", ".join(sorted({run.state for run in runs}))
        raise InputError(f"{key}={folder}: none of the sweep's {len(runs)} runs has a result ({states})")
    return comparison
