"""Result tables of a sweep: one row per job, and one row per point (averaged over seeds and folds)."""

import csv
import logging
import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from project.runs.metric_names import parse
from project.runs.ranking import REPETITIONS, Score, count_ties, rank, score, tie_note
from project.runs.sweep_jobs import Job, shorten_number
from project.runtime.atomic_files import atomic_replacement, reason_of
from project.runtime.console import table
from project.runtime.csv_files import escape_all
from project.runtime.text import duration

log = logging.getLogger(__name__)


def column_titles(jobs: Sequence[Job]) -> dict[str, str]:
    """Return the keys in which the jobs differ, each with its shortest unambiguous column title."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.settings))
    last = [key.rpartition(".")[2] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def jobs_table(jobs: Sequence[Job], monitor: str) -> str:
    """Return a table of all jobs with state, value and time."""
    titles = column_titles(jobs)
    rows = [
        [
            str(job.number),
            *(shorten_number(job.settings.get(key, "")) for key in titles),
            job.state,
            "" if job.value is None else f"{job.value:.4f}",
            "" if job.duration_s is None else duration(job.duration_s),
        ]
        for job in jobs
    ]
    return table(["job", *titles.values(), "state", monitor, "time"], rows)


def points_table(jobs: Sequence[Job], monitor: str, mode: str) -> str:
    """Return a table of all points with mean and standard deviation over seeds and folds, best first.

    The text is empty if each point is a single job.
    """
    points = rank_points(jobs, mode)
    if len(points) == len(jobs):
        return ""
    titles = {key: title for key, title in column_titles(jobs).items() if key not in REPETITIONS}
    rows = []
    for point in points:
        known = point_score(point)
        value = str(known).partition(" (")[0] if known.values else ""
        settings = [shorten_number(point[0].settings.get(key, "")) for key in titles]
        rows.append([*settings, value, f"{len(known.values)} of {known.planned}"])
    return table([*titles.values(), monitor, "n"], rows)


def best_line(jobs: Sequence[Job], monitor: str, mode: str) -> str:
    """Return a line about the best point, its value and its best job; empty if no job is done."""
    points = rank_points(jobs, mode)
    scores = [point_score(point) for point in points]
    if not scores or not math.isfinite(scores[0].mean):
        return ""
    is_max = mode == "max"
    done = [job for job in points[0] if job.state == "done" and job.value is not None]
    best = (max if is_max else min)(done, key=lambda job: job.value or 0.0)
    split, kind = parse(monitor)
    images = best.metrics.get(f"{split}/images", math.nan) if kind == "acc" else math.nan
    ties = count_ties(scores, larger_is_better=is_max, images=images)
    line = f"best: {best.point_label}: {monitor} {scores[0]}, its best run {best.name}"
    return "; ".join(filter(None, [line, tie_note(ties)]))


def rank_points(jobs: Iterable[Job], mode: str) -> list[list[Job]]:
    """Group the jobs by point, the best point first (see `project.runs.ranking`)."""
    groups: dict[Hashable, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.point_key, []).append(job)
    return rank(groups.values(), point_score, larger_is_better=mode == "max")


def point_score(jobs: Iterable[Job], repetitions: int = 0) -> Score:
    """Return the score of a point over its completed jobs; `repetitions` is the planned number of jobs."""
    return score(((job.repetition, job.value if job.state == "done" else None) for job in jobs), repetitions)


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
