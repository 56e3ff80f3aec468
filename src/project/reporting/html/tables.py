"""Sortable tables of runs and points."""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from project.reporting.compare import TableColumn, choose_metrics, key_columns, ranked_columns
from project.runs.comparison import Comparison, Point
from project.runs.hparam_diff import Differences
from project.runs.intervals import accuracy_interval
from project.runs.metric_names import is_smaller_better
from project.runs.results import DURATION, Run, is_number, natural_sort_key
from project.runs.sweep_jobs import Job
from project.runtime.text import duration, plural, shorten

MAX_KEYS, MAX_METRICS, MAX_LINKS = 6, 4, 5
"""Maximum numbers in a table of points."""
PAGE_ROWS = 25
MAX_LINK_LENGTH = 32
"""Characters."""


class Link(NamedTuple):
    """Hyperlink."""

    text: str
    href: str


@dataclass(frozen=True)
class Cell:
    """Table cell: a state badge, links and text, in this order."""

    text: str = ""
    value: float | None = None  # sort key; NaN for an empty cell; None: sorted by text
    links: Sequence[Link] = ()
    state: str = ""  # state of a run, shown as a badge
    full: str = ""  # complete text of a shortened one, shown as a tooltip

    @property
    def order(self) -> str:
        """Sort key in the page, as JavaScript's `Number` reads it."""
        if self.value is None or math.isnan(self.value):
            return ""
        return f"{self.value:.8g}".replace("inf", "Infinity")


EMPTY_CELL = Cell("", math.nan)


@dataclass(frozen=True)
class Table:
    """Table with sortable columns; the first cell of a row is its heading."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    marked: Sequence[int] = ()  # indices of highlighted rows
    larger_first: Sequence[str] = ()  # columns that a first click sorts in descending order
    page_rows: int = PAGE_ROWS  # rows of a page of the table
    folded: str = ""  # title under which the table is folded
    is_wide: bool = False  # takes the full width of the page

    def is_numeric(self, place: int) -> bool:
        """Return True if column number `place` holds only numbers."""
        return bool(self.rows) and all(row[place].value is not None for row in self.rows)


def number_cell(value: Any, form: Callable[[float], str]) -> Cell:
    """Return a cell with a formatted number; an empty cell for NaN and other values."""
    return Cell(form(value), value) if is_number(value) and not math.isnan(value) else EMPTY_CELL


def format_metric(value: float) -> str:
    """Format a number with 4 decimals, with 4 digits if it is very small or large, or as an integer."""
    if not math.isfinite(value):
        return f"{value:g}"
    if value == int(value) and abs(value) > 1:
        return f"{value:,.0f}"
    return f"{value:.4f}" if value in (0, 1) or 0.001 <= abs(value) < 1000 else f"{value:.4g}"


def format_time(text: object) -> str:
    """Format an ISO 8601 time as `2026-01-31 09:30 UTC`; empty for other strings."""
    try:
        at = datetime.fromisoformat(str(text))
    except ValueError:
        return ""
    return f"{at.astimezone(UTC) if at.tzinfo else at:%Y-%m-%d %H:%M} UTC"


def link_to(folder: Path, page: Path, text: str = "") -> Link:
    """Return a relative link from the folder of a page to another folder, or to the report in it."""
    target = folder / "report.html" if (folder / "report.html").exists() else folder
    try:
        relative = os.path.relpath(target.absolute(), page.absolute())
    except ValueError:  # another drive
        relative = str(target)
    address = quote(Path(relative).as_posix()) + ("" if target.suffix == ".html" else "/")
    has_colon = ":" in address.partition("/")[0]  # a browser would read it as a protocol
    return Link(shorten(text or folder.name, MAX_LINK_LENGTH), f"./{address}" if has_colon else address)


def points_table(comparison: Comparison, page: Path, caption: str, own: Sequence[Path] = ()) -> Table:
    """Return a table of points, best first, with mean ± sample standard deviation over seeds and folds.

    Rows of runs in the folders `own` are highlighted. The rank of a point that ties with the best one has
    the mark ≈.
    """
    points = comparison.points
    columns = _limit(ranked_columns(comparison, points))
    if tied := comparison.tied:
        caption += f"; ≈ ties with the best: {_tie_rule(comparison)}"
        columns = [_mark_ties(column, tied) if column.kind == "rank" else column for column in columns]
    links = [_link_cell(point, page) for point in points]
    rows = zip(*map(_cells, columns), links, strict=True)
    folders = {folder.resolve() for folder in own}
    is_own = [any(run.folder.resolve() in folders for run in point.runs) for point in points]
    marked = [place for place, marks in enumerate(is_own) if marks]
    head = [*(column.name for column in columns), "run"]
    return Table(caption, head, list(rows), marked, _larger_first(comparison))


def _mark_ties(column: TableColumn, tied: Sequence[int]) -> TableColumn:
    cells = [
        f"≈\N{NO-BREAK SPACE}{cell}" if place in tied else cell for place, cell in enumerate(column.cells)
    ]
    return replace(column, cells=cells)


def _tie_rule(comparison: Comparison) -> str:
    """Return the reason of ties with the best point, see `ranking.find_ties`."""
    if len(comparison.points[0].score(comparison.by).values) > 1:
        return "within one standard error of its mean"
    is_accuracy = accuracy_interval(comparison.points[0].runs[0].metrics, comparison.by) is not None
    return "equal, or their 95 % intervals overlap" if is_accuracy else "equal values"


def _larger_first(comparison: Comparison) -> list[str]:
    """Return the metrics of which larger values are better: a first click on them sorts in that order."""
    larger = [name for name in comparison.metrics if name != comparison.by and not is_smaller_better(name)]
    return [*larger, comparison.by] if comparison.larger_is_better else larger


def _limit(columns: Sequence[TableColumn]) -> list[TableColumn]:
    """Remove the last columns beyond `MAX_KEYS` keys and `MAX_METRICS` metrics."""
    keys = [column for column in columns if column.kind == "key"]
    metrics = [column for column in columns if column.kind == "metric"]
    left_out = keys[MAX_KEYS:] + metrics[MAX_METRICS - 1 :]
    return [column for column in columns if column not in left_out]


def _cells(column: TableColumn) -> list[Cell]:
    return [Cell(text, value) for text, value in zip(column.cells, column.values, strict=True)]


def _link_cell(point: Point, page: Path) -> Cell:
    """Return links to the runs of a point, by name, or by number if there are several."""
    names = [run.folder.name for run in point.runs[:MAX_LINKS]]
    if len(names) > 1:
        names = [re.sub(r"^(\d+).*", r"\1", name) for name in names]
    links = [link_to(run.folder, page, name) for run, name in zip(point.runs, names, strict=False)]
    return Cell(links=links, text=" …" if len(point.runs) > MAX_LINKS else "")


def time_of(run: Run, jobs: Mapping[str, Job]) -> float | None:
    """Return the time of a run [s]: its own, or of a run without a result, that of its job in the sweep."""
    job = jobs.get(run.folder.name)
    return run.metrics.get(DURATION, job.duration_s if job else None)


def jobs_table(
    runs: Sequence[Run], jobs: Mapping[str, Job], comparison: Comparison | None, page: Path
) -> Table | None:
    """Return one row per job: finished runs (best first), other runs, jobs without a run."""
    if not runs and not jobs:
        return None
    best = comparison.best_first if comparison else []
    ranks = {run.folder: rank for rank, run in enumerate(best)}
    ordered = sorted(
        runs, key=lambda run: (ranks.get(run.folder, len(best)), natural_sort_key(run.folder.name))
    )
    differences = Differences(runs) if runs else None
    keys = [*differences.leading, *differences.repetitions] if differences else []
    columns = key_columns(differences, ordered, keys) if differences else []
    metrics = choose_metrics(comparison.metrics, comparison.by)[:MAX_METRICS] if comparison else []
    rows = [
        [Cell(links=[link_to(run.folder, page)]), *cells]
        + [number_cell(run.metrics.get(name), format_metric) for name in metrics]
        + [Cell(state=run.state), number_cell(time_of(run, jobs), duration)]
        for run, *cells in zip(ordered, *map(_cells, columns), strict=True)
    ]
    known = {run.folder.name for run in runs}
    for name, job in jobs.items():
        if name not in known:
            label = name if keys or not job.label else f"{name}: {job.label}"
            cells = [Cell(shorten(job.settings.get(key, ""), MAX_LINK_LENGTH)) for key in keys]
            ends = [Cell(state=job.state), number_cell(job.duration_s, duration)]
            rows.append([Cell(label), *cells, *[EMPTY_CELL] * len(metrics), *ends])
    caption = plural(len(rows), "job")
    if comparison and best:
        order = "largest" if comparison.larger_is_better else "smallest"
        caption += f", {order} {comparison.by} first, by point"
    head = ["job", *(column.name for column in columns), *metrics, "state", "time"]
    larger_first = _larger_first(comparison) if comparison else []
    return Table(caption, head, rows, [0] if best else [], larger_first)
