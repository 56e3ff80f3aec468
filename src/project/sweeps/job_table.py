"""Result tables of a sweep: one row per job, and one row per point (averaged over seeds and folds)."""

import csv
import logging
import math
import shlex
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from project.runs.intervals import num_cases
from project.runs.metric_names import is_of_split, on_other_splits
from project.runs.ranking import REPETITIONS, Score, count_ties, rank, score, tie_note
from project.runs.sweep_jobs import Job, config_flags, shorten_number, visible_overrides
from project.runtime.atomic_files import atomic_replacement, reason_of
from project.runtime.console import BEST_STYLE, Column, table
from project.runtime.csv_files import escape_all
from project.runtime.process import as_called
from project.runtime.text import duration, plural

log = logging.getLogger(__name__)

MAX_ROWS = 40


def column_titles(jobs: Sequence[Job]) -> dict[str, str]:
    """Return the keys in which the jobs differ, each with its shortest unambiguous column title."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.settings))
    last = [key.rpartition(".")[2] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def results_table(jobs: Sequence[Job], monitor: str, mode: str, most: int = MAX_ROWS) -> str:
    """Return a table of the points, best first, with the monitored metric and its value on the test split.

    Points without a result come last, without a rank, with their states. Points of several jobs have mean and
    standard deviation over seeds and folds.

    Args:
        jobs: all jobs of a sweep.
        monitor: name of the monitored metric.
        mode: `max` or `min`.
        most: maximum number of rows.
    """
    points = rank_points(jobs, mode)
    is_repeated = len(points) < len(jobs)
    hidden = REPETITIONS if is_repeated else ()
    titles = {key: title for key, title in column_titles(jobs).items() if key not in hidden}
    names = list(dict.fromkeys(name for job in jobs for name in job.metrics))
    tested = on_other_splits(monitor, [name for name in names if is_of_split(name, "test")])
    is_measured = any(job.value is not None for job in jobs)
    metrics = [*([monitor] if is_measured or not tested else []), *tested]
    rows, ranked = [], 0
    for point in points[:most]:
        is_ranked = math.isfinite(point_score(point).mean)
        ranked += is_ranked
        rows.append(
            [
                *("best" if ranked == 1 and is_ranked else ranked if is_ranked else "", point[0].number),
                *(shorten_number(point[0].settings.get(key, "")) for key in titles),
                *(
                    _score_text(point_score(point, metric="" if name == monitor else name))
                    for name in metrics
                ),
                *([point_score(point).count] if is_repeated else []),
                *(_states(point), _mean_duration(point)),
            ]
        )
    if is_repeated:
        rows = [[row[0], *row[2:]] for row in rows]
    heads = ["", *([] if is_repeated else ["job"]), *titles.values(), *metrics, *["n"] * is_repeated]
    columns: list[str | Column] = [
        Column("", right=True, fixed=True),
        *heads[1:],
        "state",
        Column("time", right=True),
    ]
    lines = [table(columns, rows, row_styles={0: BEST_STYLE} if ranked else {})]
    if monitor not in metrics:
        lines.append(f"{monitor} was not measured; the rows are in the order of the jobs")
    if hidden_points := len(points) - len(rows):
        lines.append(f"… and {plural(hidden_points, 'point' if is_repeated else 'job')} more")
    return "\n".join(lines)


def _score_text(score: Score) -> str:
    return str(score).partition(" (")[0] if score.values else ""


def _states(point: Sequence[Job]) -> str:
    """Return the state of a point's jobs: `done`, or `1 failed, 2 done`."""
    counts = Counter(job.state for job in point)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _mean_duration(point: Sequence[Job]) -> str:
    known = [job.duration_s for job in point if job.duration_s is not None]
    return duration(sum(known) / len(known)) if known else ""


def count_states(jobs: Iterable[Job]) -> str:
    """Return the number of jobs in each state: `8 jobs: 5 done, 2 pruned, 1 failed`."""
    counts = Counter(job.state for job in jobs)
    states = ", ".join(f"{count:,} {state}" for state, count in counts.most_common())
    return f"{plural(sum(counts.values()), 'job')}: {states}"


def best_job(jobs: Sequence[Job], mode: str) -> Job | None:
    """Return the best job of the best point; None if no job has a finite result."""
    points = rank_points(jobs, mode)
    if not points or not math.isfinite(point_score(points[0]).mean):
        return None
    done = [job for job in points[0] if job.state == "done" and job.value is not None]
    return (max if mode == "max" else min)(done, key=lambda job: job.value or 0.0)


def training_command(job: Job, sweep_command: Sequence[str] = ()) -> str:
    """Return the command that trains a job's configuration as a single run.

    Args:
        job: job of the sweep.
        sweep_command: words of the command that started the sweep, whose configuration files are used.
    """
    words = [*config_flags(sweep_command), *visible_overrides(job.overrides)]
    return as_called(shlex.join(["python", "scripts/train.py", *words]))


def best_line(jobs: Sequence[Job], monitor: str, mode: str) -> str:
    """Return a line about the best point, its value and its best job; empty if no job is done."""
    best = best_job(jobs, mode)
    if best is None:
        return ""
    scores = [point_score(point) for point in rank_points(jobs, mode)]
    ties = count_ties(scores, larger_is_better=mode == "max", images=num_cases(best.metrics, monitor))
    value = str(scores[0]).removesuffix(" (n = 1)")
    line = f"{best.point_label}: {monitor} {value}, its best run {best.name}"
    return "; ".join(filter(None, [line, tie_note(ties)]))


def rank_points(jobs: Iterable[Job], mode: str) -> list[list[Job]]:
    """Group the jobs by point, the best point first (see `project.runs.ranking`)."""
    groups: dict[Hashable, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.point_key, []).append(job)
    return rank(groups.values(), point_score, larger_is_better=mode == "max")


def point_score(jobs: Iterable[Job], repetitions: int = 0, metric: str = "") -> Score:
    """Return the score of a point over its completed jobs.

    Args:
        jobs: all jobs of a point.
        repetitions: planned number of jobs [those in `jobs`].
        metric: name of a metric [the monitored one].
    """

    def value(job: Job) -> float | None:
        own = job.metrics.get(metric, None if metric else job.value)
        return own if job.state == "done" else None

    return score(((job.repetition, value(job)) for job in jobs), repetitions)


def write_jobs(file: Path, jobs: Sequence[Job]) -> None:
    """Write a CSV file with the settings and metrics of every job."""
    keys = list(column_titles(jobs))
    metrics = sorted({name for job in jobs for name in job.metrics})
    rows = []
    for job in jobs:
        settings = job.settings
        rows.append(
            [
                *(job.number, job.name, *(settings.get(key, "") for key in keys), job.state, job.value),
                *(*(job.metrics.get(name) for name in metrics), job.duration_s, job.error),
            ]
        )
    write_rows(file, ["job", "folder", *keys, "state", "value", *metrics, "duration_s", "error"], rows)


def write_rows(file: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file atomically."""
    with atomic_replacement(file) as partial, partial.open("w", newline="") as stream:
        csv.writer(stream).writerows(escape_all(row) for row in [head, *rows])


@contextmanager
def warn_if_unwritable(sweep: str) -> Iterator[None]:
    """Log a warning if tables or figures cannot be written; the results are also printed and recorded."""
    try:
        yield
    except OSError as error:
        file = error.filename or f"{sweep}: tables and figures"
        log.warning("warning: %s: %s; resume=%s writes it when there is room", file, reason_of(error), sweep)
