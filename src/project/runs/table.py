"""A comparison as text for the terminal."""

import math
import shutil
import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os.path import commonpath
from pathlib import Path
from typing import Literal

from project.runs.collect import Comparison, Point
from project.runs.hparam_diff import short_names
from project.runs.ranking import tie_note
from project.runs.results import DURATION

GAP = "  "
WIDEST = 18  # characters of a cell
NARROW = 10  # of a key's heading where room is short
MOST_NAMED = 5  # failed runs, damaged files
RESERVED = ("#", "n", "time", "folder")
COUNTS = "/images"  # val/images: how many were evaluated, the same for all


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Args:
        kind: what it tells.
        name: its heading.
        cells: as many as there are rows.
        right: aligned to the right, as numbers are.
    """

    kind: Literal["rank", "key", "by", "metric", "n", "time", "folder"]
    name: str
    cells: list[str]
    right: bool = True

    @property
    def width(self) -> int:
        """In characters."""
        return max(map(len, [self.name, *self.cells]))

    def narrowed(self) -> "Column":
        """The same where room is short: a key's heading not much wider than its values."""
        if self.kind != "key":
            return self
        most = max(NARROW, *map(len, self.cells))
        return replace(self, name=shorten(self.name, most, at_end=True))


def render(comparison: Comparison, top: int, width: int | None = None) -> str:
    """Lay out a comparison.

    Args:
        comparison: what to show.
        top: how many rows there are at most.
        width: in characters; None for the terminal's.
    """
    width = shutil.get_terminal_size().columns if width is None else width
    columns = _columns(comparison, comparison.points[:top])
    kept = _fit(columns, width)
    if len(kept) < len(columns):
        columns = [column.narrowed() for column in columns]
        kept = _fit(columns, width)
    left_out = [column.name for column in columns if column not in kept]
    lines = [_title(comparison), "", *_lay_out(kept), ""]
    for note in _notes(comparison, top, left_out):
        lines += textwrap.wrap(note, width, break_long_words=False, break_on_hyphens=False)
    troubles = [shorten(line, width, at_end=True) for line in _troubles(comparison)]
    return "\n".join(lines + troubles)


def _title(comparison: Comparison) -> str:
    counted = plural(comparison.count, "run")
    if len(comparison.points) < comparison.count:
        counted += f" in {plural(len(comparison.points), 'point')}: mean ± sample std over n seeds"
    return f"{counted}; {'largest' if comparison.larger_is_better else 'smallest'} {comparison.by} first"


def _columns(comparison: Comparison, points: Sequence[Point]) -> list[Column]:
    """All columns, in the order in which they stand."""
    first = [point.runs[0] for point in points]
    shown = comparison.shown
    keys = [*shown.told, *(shown.repetitions if comparison.each else ())]
    names = short_names(keys, RESERVED)
    columns = [Column("rank", "#", [str(rank + 1) for rank in range(len(points))])]
    for key in keys:
        cells = [shorten(cell, WIDEST) for cell in shown.texts(first, key)]
        numeric = any(isinstance(shown.value(run, key), int | float) for run in first)
        columns.append(Column("key", shorten(names[key], WIDEST), cells, right=numeric))
    for metric in _wanted_metrics(comparison):
        is_by = metric == comparison.by
        columns.append(Column("by" if is_by else "metric", metric, numbers(points, metric), right=False))
    if comparison.count > len(comparison.points):
        columns.append(Column("n", "n", [point.score(comparison.by).count for point in points]))
    columns.append(Column("time", "time", [duration(point.mean(DURATION)) for point in points]))
    if comparison.each:
        columns.append(Column("folder", "folder", below([run.folder for run in first])[1], right=False))
    return columns


def _wanted_metrics(comparison: Comparison) -> list[str]:
    """The metric ranked by, the same of the other split, the rest; not those of training."""
    name = comparison.by.rpartition("/")[2]
    rest = [
        name for name in comparison.metrics if not name.startswith("train/") and not name.endswith(COUNTS)
    ]
    wanted = dict.fromkeys([f"test/{name}", f"val/{name}", *sorted(rest, reverse=True)])
    return [comparison.by, *(metric for metric in wanted if metric in rest and metric != comparison.by)]


def _fit(columns: Sequence[Column], width: int) -> list[Column]:
    """Take the most wanted columns that there is room for, in the order in which they stand."""
    of: defaultdict[str, list[Column]] = defaultdict(list)
    for column in columns:
        of[column.kind].append(column)
    wishes = [*of["rank"], *of["by"], *of["key"][:3], *of["n"], *of["folder"], *of["key"][3:]]
    wishes += [*of["metric"][:1], *of["time"], *of["metric"][1:]]
    kept, room = [], width + len(GAP)
    for column in wishes:
        needed = column.kind in ("rank", "by")
        if needed or column.width + len(GAP) <= room:
            kept.append(column)
            room -= column.width + len(GAP)
    return [column for column in columns if column in kept]


def _lay_out(columns: Sequence[Column]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(column.width) if column.right else cell.ljust(column.width)
            for cell, column in zip(cells, columns, strict=True)
        ]
        return GAP.join(padded).rstrip()

    rows = zip(*(column.cells for column in columns), strict=True)
    return [line([column.name for column in columns]), *map(line, rows)]


def _notes(comparison: Comparison, top: int, left_out: Sequence[str]) -> list[str]:
    """Where the best run lies, and what the table leaves out."""
    notes = [f"best run: {run.folder}" for run in comparison.best_first[:1]]
    notes += [note] if (note := tie_note(comparison.ties)) else []
    if comparison.repeated and not comparison.each:
        notes.append(f"counted once with their like: {plural(comparison.repeated, 'run')} of the same seed")
    if comparison.each and "folder" not in left_out:
        common, _ = below([point.runs[0].folder for point in comparison.points[:top]])
        notes += [f"folders are those in {common}"] if common else []
    if (hidden := len(comparison.points) - top) > 0:
        notes.append(f"{hidden} more are not shown; --top {len(comparison.points)} shows all")
    missing = []
    if left_out:
        missing.append(
            f"{plural(len(left_out), 'column')} for which there is no room ({', '.join(left_out)})"
        )
    if following := comparison.shown.following:
        missing.append(f"{plural(len(following), 'key')} that only follow from these")
    if missing:
        notes.append(f"--csv FILE has all: also {' and '.join(missing)}")
    return notes


def best_line(comparison: Comparison) -> str:
    """Say which point of a comparison is the best, how good it is, and which of its runs is the best."""
    best, run = comparison.points[0], comparison.best_first[0]
    told = comparison.shown.told
    keys = [f"{key} {comparison.shown.texts([run], key)[0]}" for key in told]
    of = f"the best of {plural(len(comparison.points), 'point')}"
    line = f"{', '.join(keys) or 'the only point'}, {of}: {comparison.by} {best.score(comparison.by)}"
    return "; ".join(filter(None, [f"{line}, its best run {run.folder.name}", tie_note(comparison.ties)]))


def _troubles(comparison: Comparison) -> list[str]:
    """The runs that are not ranked."""
    lines = []
    if comparison.unfinished:
        counts = Counter(run.state for run in comparison.unfinished)
        lines = [f"not ranked: {', '.join(f'{count} {state}' for state, count in counts.items())}"]
        lines += [f"  {run.state}  {run.folder}  {run.error}".rstrip() for run in comparison.unfinished]
        lines = _some(lines, MOST_NAMED + 1)
    if comparison.damaged:
        lines += [f"passed over: {plural(len(comparison.damaged), 'damaged run')}"]
        lines += _some([f"  {reason}" for reason in comparison.damaged], MOST_NAMED)
    return lines


def _some(lines: list[str], most: int) -> list[str]:
    return lines if len(lines) <= most else [*lines[:most], f"  … and {len(lines) - most} more"]


def numbers(points: Sequence[Point], metric: str) -> list[str]:
    """A metric's mean ± std, a cell a point; with the same number of decimals in all."""
    means = [point.mean(metric) for point in points]
    largest = max((abs(mean) for mean in means if math.isfinite(mean)), default=1.0)
    form = ".4f" if 0.01 <= largest < 1000 else ".4g"
    cells = []
    for point, mean in zip(points, means, strict=True):
        std = point.std(metric)
        missing = "" if not point.score(metric).values else f"{mean:{form}}"
        cells.append(missing if math.isnan(std) else f"{missing} ± {std:{form}}")
    return cells


def duration(seconds: float) -> str:
    """A duration in the unit that suits it."""
    if math.isnan(seconds):
        return ""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def below(folders: Sequence[Path]) -> tuple[str, list[str]]:
    """Split paths into the folder that all lie in and the rest of each."""
    try:
        common = commonpath([folder.parent for folder in folders])
    except ValueError:  # absolute ones among relative ones
        common = ""
    return common, [str(folder.relative_to(common)) for folder in folders]


def shorten(words: str, most: int, *, at_end: bool = False) -> str:
    """Cut text to a number of characters: in its middle, where paths and lists differ least."""
    if len(words) <= most:
        return words
    tail = 0 if at_end else (most - 1) // 2
    return words[: most - 1 - tail] + "…" + words[len(words) - tail :]


def plural(count: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {noun}{'s' * (count != 1)}"
