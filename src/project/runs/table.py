"""A comparison of runs as text for the terminal."""

import math
import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path
from typing import Literal

from project.runs.collect import Comparison, Point
from project.runs.hparam_diff import short_names
from project.runs.ranking import tie_note
from project.runs.results import DURATION
from project.runtime import console
from project.runtime.text import columns_of, duration, plural, shorten

MAX_CELL_WIDTH = 18
NUM_NAMED = 5
"""Failed runs and damaged files that are listed."""
RESERVED = ("#", "n", "time", "folder")
IMAGE_COUNTS = "/images"
"""Ends the names of metrics that count images: the same for all runs."""


@dataclass(frozen=True)
class _Column:
    kind: Literal["rank", "key", "by", "metric", "n", "time", "folder"]
    title: str
    cells: list[str]
    right: bool = True

    @property
    def width(self) -> int:
        return max(map(columns_of, [self.title, *self.cells])) + len(console.GAP)


def render(comparison: Comparison, top: int, width: int | None = None) -> str:
    """Return a table of the best points, with notes on what the table leaves out.

    Args:
        comparison: ranked runs.
        top: most rows.
        width: columns of the terminal (its own).
    """
    width = console.terminal_width() if width is None else width
    columns = _columns(comparison, comparison.points[:top])
    kept = _fit(columns, width)
    left_out = [column.title for column in columns if column not in kept]
    heads = [console.Column(column.title, right=column.right, fixed=True) for column in kept]
    rows = list(zip(*(column.cells for column in kept), strict=True))
    lines = [_title(comparison), "", console.table(heads, rows, width=width), ""]
    for note in _notes(comparison, top, left_out):
        lines += textwrap.wrap(note, width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines + [shorten(line, width, keep="start") for line in _not_ranked(comparison)])


def _title(comparison: Comparison) -> str:
    counted = plural(comparison.count, "run")
    if len(comparison.points) < comparison.count:
        counted += f" in {plural(len(comparison.points), 'point')}: mean ± sample std over n seeds"
    return f"{counted}; {'largest' if comparison.larger_is_better else 'smallest'} {comparison.by} first"


def _columns(comparison: Comparison, points: Sequence[Point]) -> list[_Column]:
    """Return all columns in the order of the table."""
    first = [point.runs[0] for point in points]
    shown = comparison.shown
    keys = [*shown.told, *(shown.repetitions if comparison.each else ())]
    names = short_names(keys, RESERVED)
    columns = [_Column("rank", "#", [str(rank) for rank in range(1, len(points) + 1)])]
    for key in keys:
        cells = [shorten(cell, MAX_CELL_WIDTH) for cell in shown.texts(first, key)]
        numeric = any(isinstance(shown.value(run, key), int | float) for run in first)
        columns.append(_Column("key", shorten(names[key], MAX_CELL_WIDTH), cells, right=numeric))
    for metric in _wanted_metrics(comparison):
        kind: Literal["by", "metric"] = "by" if metric == comparison.by else "metric"
        columns.append(_Column(kind, metric, numbers(points, metric)))
    if comparison.count > len(comparison.points):
        columns.append(_Column("n", "n", [point.score(comparison.by).count for point in points]))
    columns.append(_Column("time", "time", [duration(point.mean(DURATION)) for point in points]))
    if comparison.each:
        _, folders = split_common([run.folder for run in first])
        columns.append(_Column("folder", "folder", folders, right=False))
    return columns


def _wanted_metrics(comparison: Comparison) -> list[str]:
    """Return the metric ranked by, the same of the other split, and the rest but those of training."""
    name = comparison.by.rpartition("/")[2]
    rest = [
        name
        for name in comparison.metrics
        if not name.startswith("train/") and not name.endswith(IMAGE_COUNTS)
    ]
    wanted = dict.fromkeys([f"test/{name}", f"val/{name}", *sorted(rest, reverse=True)])
    return [comparison.by, *(metric for metric in wanted if metric in rest and metric != comparison.by)]


def _fit(columns: Sequence[_Column], width: int) -> list[_Column]:
    """Return the most wanted columns that there is room for, in the order of the table."""
    of: defaultdict[str, list[_Column]] = defaultdict(list)
    for column in columns:
        of[column.kind].append(column)
    wishes = [*of["rank"], *of["by"], *of["key"][:3], *of["n"], *of["folder"], *of["key"][3:]]
    wishes += [*of["metric"][:1], *of["time"], *of["metric"][1:]]
    kept, room = [], width + len(console.GAP)
    for column in wishes:
        if column.kind in ("rank", "by") or column.width <= room:
            kept.append(column)
            room -= column.width
    return [column for column in columns if column in kept]


def _notes(comparison: Comparison, top: int, left_out: Sequence[str]) -> list[str]:
    """Return where the best run lies, and what the table leaves out."""
    notes = [f"best run: {run.folder}" for run in comparison.best_first[:1]]
    notes += [note] if (note := tie_note(comparison.ties)) else []
    if comparison.repeated and not comparison.each:
        notes.append(f"counted once with their like: {plural(comparison.repeated, 'run')} of the same seed")
    if comparison.each and "folder" not in left_out:
        common, _ = split_common([point.runs[0].folder for point in comparison.points[:top]])
        notes += [f"folders are those in {common}"] if common else []
    if (hidden := len(comparison.points) - top) > 0:
        notes.append(f"{hidden} more are not shown; --top {len(comparison.points)} shows all")
    missing = []
    if left_out:
        names = ", ".join(left_out)
        missing.append(f"{plural(len(left_out), 'column')} for which there is no room ({names})")
    if following := comparison.shown.following:
        missing.append(f"{plural(len(following), 'key')} that only follow from these")
    if missing:
        notes.append(f"--csv FILE has all: also {' and '.join(missing)}")
    return notes


def best_line(comparison: Comparison) -> str:
    """Return which point of a comparison is the best, its score, and the best of its runs."""
    best, run = comparison.points[0], comparison.best_first[0]
    keys = [f"{key} {comparison.shown.texts([run], key)[0]}" for key in comparison.shown.told]
    of = f"the best of {plural(len(comparison.points), 'point')}"
    line = f"{', '.join(keys) or 'the only point'}, {of}: {comparison.by} {best.score(comparison.by)}"
    return "; ".join(filter(None, [f"{line}, its best run {run.folder.name}", tie_note(comparison.ties)]))


def _not_ranked(comparison: Comparison) -> list[str]:
    lines = []
    if comparison.unfinished:
        counts = Counter(run.state for run in comparison.unfinished)
        lines = [f"not ranked: {', '.join(f'{count} {state}' for state, count in counts.items())}"]
        lines += _some(
            [f"  {run.state}  {run.folder}  {run.error}".rstrip() for run in comparison.unfinished]
        )
    if comparison.damaged:
        lines += [f"passed over: {plural(len(comparison.damaged), 'damaged run')}"]
        lines += _some([f"  {reason}" for reason in comparison.damaged])
    return lines


def _some(lines: list[str]) -> list[str]:
    more = len(lines) - NUM_NAMED
    return lines if more <= 0 else [*lines[:NUM_NAMED], f"  … and {more} more"]


def numbers(points: Sequence[Point], metric: str) -> list[str]:
    """Return a metric's mean ± std for each point, all with the same number of decimals."""
    means = [point.mean(metric) for point in points]
    largest = max((abs(mean) for mean in means if math.isfinite(mean)), default=1.0)
    form = ".4f" if 0.01 <= largest < 1000 else ".4g"
    cells = []
    for point, mean in zip(points, means, strict=True):
        std = point.std(metric)
        missing = "" if not point.score(metric).values else f"{mean:{form}}"
        cells.append(missing if math.isnan(std) else f"{missing} ± {std:{form}}")
    return cells


def split_common(folders: Sequence[Path]) -> tuple[str, list[str]]:
    """Return the folder that all paths lie in, and the rest of each."""
    try:
        common = commonpath([folder.parent for folder in folders])
    except ValueError:  # absolute ones among relative ones
        common = ""
    return common, [str(folder.relative_to(common)) for folder in folders]
