"""Tables of runs: ranked, sortable by a click on a heading."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from project.reporting.html.html import Markup, element
from project.reporting.html.wording import badge, is_share, metric, percent
from project.runs.collect import Comparison, Point
from project.runs.hparam_diff import Differences, short_names
from project.runs.results import DURATION, Run
from project.runs.table import RESERVED, numbers, shorten
from project.runtime.text import duration

MOST_KEYS = 6
"""Of the keys that differ; more would push the metrics out of sight."""
MOST_LINKS = 5
NUMBER = re.compile(r"\d+")
WIDEST = 32
"""Characters of a cell."""
NAMES = {"acc": "accuracy", "loss": "loss"}
SPLITS = {"test": "test", "val": "val.", "train": "train"}


class Cell(NamedTuple):
    """A cell of a table.

    Args:
        content: what is shown.
        order: by which its column is sorted; None for its text.
        number: whether it stands to the right.
    """

    content: object
    order: float | None = None
    number: bool = False


def table(
    head: Sequence[str], rows: Sequence[Sequence[Cell]], *, caption: str, marked: Sequence[int] = ()
) -> Markup:
    """A table of which every column can be sorted.

    Args:
        head: names of the columns.
        rows: as many cells each; the first one names the row.
        caption: what it shows.
        marked: numbers of the rows that stand out.
    """
    numeric = [bool(rows) and all(row[place].number for row in rows) for place in range(len(head))]
    heading = [
        element("th", name, scope="col", class_="number" if right else None)
        for name, right in zip(head, numeric, strict=True)
    ]
    body = [
        element(
            "tr",
            [_cell(cell, place == 0, numeric[place]) for place, cell in enumerate(row)],
            class_="marked" if number in marked else None,
        )
        for number, row in enumerate(rows)
    ]
    whole = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", heading)),
        element("tbody", body),
        class_="runs sortable",
    )
    return element("div", whole, class_="scroll card", tabindex="0", role="region", aria_label=caption)


def _cell(cell: Cell, first: bool, right: bool) -> Markup:
    order = None if cell.order is None or math.isnan(cell.order) else f"{cell.order:.8g}"
    return element(
        "th" if first else "td",
        cell.content,
        scope="row" if first else None,
        class_="number" if right else None,
        data_order=order,
    )


def column_names(metrics: Sequence[str]) -> list[str]:
    """Metrics' names as headings: `test accuracy`."""
    names = []
    for name in metrics:
        split, _, kind = name.partition("/")
        names.append(f"{SPLITS[split]} {NAMES.get(kind, kind)}" if split in SPLITS and kind else name)
    return names


def wanted_metrics(metrics: Sequence[str], monitor: str, most: int = 4) -> list[str]:
    """The metrics that a table of runs shows: what it is ordered by first, then the same of the test."""
    kind = monitor.rpartition("/")[2]
    first = [monitor, f"test/{kind}", "test/acc", "val/acc", "test/loss", "val/loss"]
    return [name for name in dict.fromkeys(first) if name in metrics][:most]


def points_table(comparison: Comparison, page: Path, caption: str, own: Sequence[Path] = ()) -> Markup:
    """Points best first, with mean ± sample standard deviation over their seeds and folds.

    Args:
        comparison: what is ranked.
        page: folder of the page, to which links are relative.
        caption: what the table shows.
        own: folders of the runs whose rows stand out.
    """
    metrics = wanted_metrics(comparison.metrics, comparison.by)
    told = comparison.shown.told + (comparison.shown.repetitions if comparison.each else [])
    keys = told[:MOST_KEYS]
    if len(keys) < len(told):
        caption += f"; not shown of the keys that differ: {', '.join(told[MOST_KEYS:])}"
    first = [point.runs[0] for point in comparison.points]
    columns = [_key_cells(comparison.shown, first, key) for key in keys]
    columns += [_mean_cells(comparison.points, name) for name in metrics]
    if comparison.count > len(comparison.points):
        scores = [point.score(comparison.by) for point in comparison.points]
        columns.append([Cell(one.count, len(one.values), number=True) for one in scores])
    columns.append([duration_cell(point.mean(DURATION)) for point in comparison.points])
    columns.append([Cell(_links(point, page)) for point in comparison.points])
    names = short_names(keys, RESERVED)
    several = ["n"] if comparison.count > len(comparison.points) else []
    head = ["rank", *(names[key] for key in keys), *column_names(metrics), *several, "time", "run"]
    ranks = [Cell(str(rank + 1), rank + 1, number=True) for rank in range(len(comparison.points))]
    rows = list(zip(ranks, *columns, strict=True))
    mine = {folder.resolve() for folder in own}
    marked = [
        number
        for number, point in enumerate(comparison.points)
        if mine and any(run.folder.resolve() in mine for run in point.runs)
    ]
    return table(head, rows, caption=caption, marked=marked)


def _key_cells(differences: Differences, runs: Sequence[Run], key: str) -> list[Cell]:
    values = [differences.value(run, key) for run in runs]
    return [
        Cell(shorten(words, WIDEST), float(value), number=True)
        if isinstance(value, int | float) and not isinstance(value, bool)
        else Cell(shorten(words, WIDEST))
        for value, words in zip(values, differences.texts(runs, key), strict=True)
    ]


def _mean_cells(points: Sequence[Point], name: str) -> list[Cell]:
    """Mean ± sample standard deviation of a metric, a cell a point."""
    if is_share(name):
        return [_share_cell(point, name) for point in points]
    texts = numbers(points, name)
    return [Cell(text, point.mean(name), number=True) for point, text in zip(points, texts, strict=True)]


def _share_cell(point: Point, name: str) -> Cell:
    if not point.score(name).values:
        return Cell("", math.nan, number=True)
    mean, std = point.mean(name), point.std(name)
    words = percent(mean)
    if not math.isnan(std):
        words = f"{words.removesuffix(' %')} ± {percent(std)}"
    return Cell(words, mean, number=True)


def _links(point: Point, page: Path) -> list[object]:
    """Links to a point's runs: by their names, or by their numbers where there are several."""
    names = [run.folder.name for run in point.runs[:MOST_LINKS]]
    if len(names) > 1:
        names = [NUMBER.match(name)[0] if NUMBER.match(name) else name for name in names]  # type: ignore[index]
    pieces: list[object] = []
    for name, run in zip(names, point.runs, strict=False):
        pieces += [", "] * bool(pieces) + [link(run.folder, page, name)]
    return [*pieces, " …"] if len(point.runs) > MOST_LINKS else pieces


def metric_cell(metrics: Mapping[str, float], name: str) -> Cell:
    """A run's value of a metric, or an empty cell."""
    value = metrics.get(name)
    return Cell(
        "" if value is None else metric(name, value), math.nan if value is None else value, number=True
    )


def duration_cell(seconds: float | None) -> Cell:
    """A time span, or an empty cell."""
    known = seconds is not None and math.isfinite(seconds)
    return Cell(
        duration(seconds) if known and seconds is not None else "",
        seconds if known else math.nan,
        number=True,
    )


def state_cell(state: str) -> Cell:
    """A run's state as a badge."""
    return Cell(badge(state))


def link(folder: Path, page: Path, name: str = "") -> Markup:
    """A link from a page to a folder, by its own name; to the folder's own report where there is one."""
    target = folder / "report.html" if (folder / "report.html").exists() else folder
    try:
        relative = os.path.relpath(target.absolute(), page.absolute())
    except ValueError:  # another drive
        relative = str(target)
    address = quote(Path(relative).as_posix()) + ("" if target.suffix == ".html" else "/")
    return element(
        "a",
        shorten(name or folder.name, WIDEST),
        href=f"./{address}" if ":" in address.partition("/")[0] else address,
    )
