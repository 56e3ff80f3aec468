"""A sweep's result as a table: every job, and every point over its seeds and folds."""

import csv
import logging
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev

from project.runs.outages import reason_of
from project.sweeps.jobs import Job, short, shown
from project.wording import duration

log = logging.getLogger(__name__)

GAP = "  "


def columns_of(jobs: Sequence[Job]) -> dict[str, str]:
    """Keys in which the jobs differ, with the shortest title that tells them apart."""
    keys = list(dict.fromkeys(key for job in jobs for key in settings(job)))
    titles = {}
    for key in keys:
        short = key.rpartition(".")[2]
        alone = sum(other.rpartition(".")[2] == short for other in keys) == 1
        titles[key] = short if alone else key
    return titles


def settings(job: Job) -> dict[str, str]:
    """A job's values of the keys in which the sweep's jobs differ."""
    pairs = (text.partition("=") for text in shown(job.varied))
    return {key.lstrip("+"): value for key, _, value in pairs}


def jobs_table(jobs: Sequence[Job], monitor: str) -> str:
    """Every job with state, value and time."""
    titles = columns_of(jobs)
    head = ["job", *titles.values(), "state", monitor, "time"]
    rows = [
        [
            str(job.number),
            *(short(settings(job).get(key, "")) for key in titles),
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
    groups = _by_point(jobs)
    if all(len(group) == 1 for group in groups):
        return ""
    titles = {key: title for key, title in columns_of(jobs).items() if key not in ("seed", "data.fold")}
    sign = -1 if mode == "max" else 1
    measured = [(group, spread(job.value for job in group)) for group in groups]
    measured.sort(key=lambda pair: sign * pair[1][0] if pair[1][2] else math.inf)
    rows = [
        [
            *(short(settings(group[0]).get(key, "")) for key in titles),
            f"{average:.4f} ± {deviation:.4f}" if number > 1 else f"{average:.4f}" if number else "",
            f"{number} of {len(group)}",
        ]
        for group, (average, deviation, number) in measured
    ]
    return layout([*titles.values(), monitor, "jobs"], rows)


def spread(values: Iterable[float | None]) -> tuple[float, float, int]:
    """Mean, sample standard deviation (n - 1) and number of the values that are there."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return math.nan, math.nan, 0
    return mean(known), stdev(known) if len(known) > 1 else 0.0, len(known)


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
        writer.writerow(["job", "folder", *keys, "state", "value", *metrics, "duration_s", "error"])
        for job in jobs:
            own = settings(job)
            writer.writerow(
                [
                    *(job.number, job.name),
                    *(own.get(key, "") for key in keys),
                    *(job.state, job.value),
                    *(job.metrics.get(name) for name in metrics),
                    *(job.duration_s, job.error),
                ]
            )
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


def _by_point(jobs: Sequence[Job]) -> list[list[Job]]:
    groups: dict[int, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.point, []).append(job)
    return list(groups.values())


def layout(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side; those of settings give way where the terminal is too narrow."""
    widths = [max(len(row[index]) for row in [head, *rows]) for index in range(len(head))]
    room = shutil.get_terminal_size().columns - len(GAP) * (len(widths) - 1)
    while sum(widths) > room and max(widths) > 8:
        widths[widths.index(max(widths))] -= 1
    numbers = [all(_is_number(row[index]) for row in rows) for index in range(len(head))]
    lines = []
    for row in [head, *rows]:
        cells = (_cell(text, width, number) for text, width, number in zip(row, widths, numbers, strict=True))
        lines.append(GAP.join(cells).rstrip())
    return "\n".join(lines)


def _cell(text: str, width: int, number: bool) -> str:
    if len(text) > width:
        text = text[: width - 1] + "…"
    return f"{text:>{width}}" if number else f"{text:<{width}}"


def _is_number(text: str) -> bool:
    try:
        float(text or "0")
    except ValueError:
        return False
    return True
