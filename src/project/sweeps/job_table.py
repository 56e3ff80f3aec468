"""A sweep's result as a table: every job, and every point over its seeds and folds."""

import csv
import logging
import math
import shutil
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from project.runs.metrics_csv import is_number
from project.runs.ranking import REPETITIONS, Score, count_ties, rank, score, tie_note
from project.runs.sweep_jobs import Job, short
from project.runtime.csv_cells import escape_all
from project.runtime.files import reason_of
from project.runtime.text import duration

log = logging.getLogger(__name__)

GAP = "  "


def columns_of(jobs: Sequence[Job]) -> dict[str, str]:
    """Keys in which the jobs differ, with the shortest title that tells them apart."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.settings))
    titles = {}
    for key in keys:
        short = key.rpartition(".")[2]
        alone = sum(other.rpartition(".")[2] == short for other in keys) == 1
        titles[key] = short if alone else key
    return titles


def jobs_table(jobs: Sequence[Job], monitor: str) -> str:
    """Every job with state, value and time."""
    titles = columns_of(jobs)
    head = ["job", *titles.values(), "state", monitor, "time"]
    rows = [
        [
            str(job.number),
            *(short(job.settings.get(key, "")) for key in titles),
            job.state,
            "" if job.value is None else f"{job.value:.4f}",
            "" if job.duration_s is None else duration(job.duration_s),
        ]
        for job in jobs
    ]
    return layout(head, rows)


def points_table(jobs: Sequence[Job], monitor: str, mode: str) -> str:
    """Every point with mean and standard deviation over its seeds and folds, the best first.

    Empty if each point is one job.
    """
    points = ranked_points(jobs, mode)
    if len(points) == len(jobs):
        return ""
    titles = {key: title for key, title in columns_of(jobs).items() if key not in REPETITIONS}
    rows = []
    for point in points:
        known = point_score(point)
        value, _, _ = str(known).partition(" (")
        shown = [short(point[0].settings.get(key, "")) for key in titles]
        rows.append([*shown, value if known.values else "", f"{len(known.values)} of {known.asked}"])
    return layout([*titles.values(), monitor, "n"], rows)


def best_line(jobs: Sequence[Job], monitor: str, mode: str) -> str:
    """Say which point is the best, how good it is, and which of its jobs is; empty if none is done."""
    points = ranked_points(jobs, mode)
    scores = [point_score(point) for point in points]
    if not scores or not math.isfinite(scores[0].mean):
        return ""
    larger = mode == "max"
    done = [job for job in points[0] if job.state == "done" and job.value is not None]
    best = (max if larger else min)(done, key=lambda job: job.value or 0.0)
    split, _, kind = monitor.partition("/")
    images = best.metrics.get(f"{split}/images", math.nan) if kind == "acc" else math.nan
    ties = count_ties(scores, larger_is_better=larger, images=images)
    line = f"best: {best.point_label}: {monitor} {scores[0]}, its best run {best.name}"
    return "; ".join(filter(None, [line, tie_note(ties)]))


def ranked_points(jobs: Iterable[Job], mode: str) -> list[list[Job]]:
    """The jobs of each point, the best point first (see `project.runs.ranking`)."""
    groups: dict[Hashable, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.point_key, []).append(job)
    return rank(groups.values(), point_score, larger_is_better=mode == "max")


def point_score(jobs: Iterable[Job], asked: int = 0) -> Score:
    """The value of a point over its jobs that are done; `asked`: how many there are to be, if more."""
    return score(((job.repetition, job.value if job.state == "done" else None) for job in jobs), asked)


def write_csv(file: Path, jobs: Sequence[Job]) -> None:
    """Write every job with its settings and all of its metrics.

    Raises:
        OSError: it cannot be written.
    """
    keys = list(columns_of(jobs))
    metrics = sorted({name for job in jobs for name in job.metrics})
    partial = file.with_suffix(".csv.partial")
    with partial.open("w", newline="") as stream:
        writer = csv.writer(stream)
        head = ["job", "folder", *keys, "state", "value", *metrics, "duration_s", "error"]
        writer.writerow(escape_all(head))
        for job in jobs:
            own = job.settings
            cells = [
                *(job.number, job.name),
                *(own.get(key, "") for key in keys),
                *(job.state, job.value),
                *(job.metrics.get(name) for name in metrics),
                *(job.duration_s, job.error),
            ]
            writer.writerow(escape_all(cells))
    partial.replace(file)


@contextmanager
def written_if_possible(sweep: str) -> Iterator[None]:
    """Tell of tables and pictures that cannot be written: the result is printed, and on record.

    Args:
        sweep: its folder.
    """
    try:
        yield
    except OSError as error:
        file = error.filename or f"{sweep}: tables and pictures"
        log.warning("warning: %s: %s; resume=%s writes it when there is room", file, reason_of(error), sweep)


def layout(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side; those of settings give way where the terminal is too narrow."""
    widths = [max(len(row[index]) for row in [head, *rows]) for index in range(len(head))]
    room = shutil.get_terminal_size().columns - len(GAP) * (len(widths) - 1)
    while sum(widths) > room and max(widths) > 8:
        widths[widths.index(max(widths))] -= 1
    numbers = [all(is_number(row[index]) for row in rows) for index in range(len(head))]
    lines = []
    for row in [head, *rows]:
        cells = (_cell(text, width, number) for text, width, number in zip(row, widths, numbers, strict=True))
        lines.append(GAP.join(cells).rstrip())
    return "\n".join(lines)


def _cell(text: str, width: int, number: bool) -> str:
    if len(text) > width:
        text = text[: width - 1] + "…"
    return f"{text:>{width}}" if number else f"{text:<{width}}"
