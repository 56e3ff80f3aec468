"""`scripts/compare.py`: rank runs in a terminal table, a CSV file with all columns, and a figure."""

import csv
import math
import os
import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from project.config.command_options import option
from project.errors import InputError
from project.runs.comparison import RESERVED, Comparison, Point, compare, score_texts
from project.runs.hparam_diff import ABSENT, Differences, short_names
from project.runs.metric_names import is_of_split, on_other_splits
from project.runs.ranking import tie_note
from project.runs.results import DURATION, Run, format_value, is_number
from project.runtime import lazy_imports
from project.runtime.console import BEST_STYLE, GAP, Column, table, terminal_width, waiting
from project.runtime.csv_files import escape_all
from project.runtime.output_files import IMAGE, output_file, refuse_foreign_file, refuse_unwritable_output
from project.runtime.text import columns_of, duration, plural, shorten

FORMATS = (".png", ".svg", ".pdf")
COMPARISON = re.compile(rb"rank,(n,unfinished|folder,state)\b")
"""Start of a CSV file that this command wrote."""
DATA_LOCATIONS = ("path", "table", "label_columns")
"""Keys of `data` whose values select other inputs or targets of the same class."""
EXAMPLES = """\
examples:
  python scripts/compare.py                          all runs below outputs
  python scripts/compare.py outputs/sweep/2026-01-31_09-30-00 plot=sweep.png
  python scripts/compare.py sweep_a sweep_b by=test/acc csv=both.csv
"""
DATA = "data"
"""Key of the data set."""
MAX_WIDTH = 20
"""Maximum number of characters in a cell."""
MAX_NAMED = 5
"""Maximum number of unfinished or damaged runs to list."""


@dataclass
class Options:
    """Rank runs by their monitored metric.

    Runs that differ only in seed or data.fold form one point: mean ± sample
    standard deviation, and number of runs.
    """

    runs: list[str] = option(
        ["outputs"], "run folders, sweep folders, or folders above them; `runs=` is optional"
    )
    by: str | None = option(None, "metric to rank by, such as test/acc; null: the monitored metric")
    each: bool = option(False, "rank each run separately instead of averaging over seeds")
    top: int = option(20, "maximum number of rows in the table", least=1)
    csv: Path | None = option(None, "CSV file with all rows and columns; with each=true, one row per run")
    plot: Path | None = option(None, "figure of all points and learning curves: a .png, .svg or .pdf file")


def main(options: Options) -> None:
    """Print the ranking, and write the CSV file and the figure.

    Raises:
        InputError: there are no finished runs or no such metric, or a file cannot be written.
    """
    lazy_imports.freeze_gc()
    if options.plot and options.plot.suffix.lower() not in FORMATS:
        raise InputError(f"plot={options.plot}: unknown format; end the name in {', '.join(FORMATS)}")
    if options.csv and options.plot and os.path.realpath(options.csv) == os.path.realpath(options.plot):
        raise InputError(f"plot={options.plot}: the same file as csv; give another name")
    for key, file, kind in (("csv", options.csv, COMPARISON), ("plot", options.plot, IMAGE)):
        if file:
            refuse_unwritable_output(f"{key}={file}", file)
            refuse_foreign_file(f"{key}={file}", file, kind)
    with waiting("reading runs"):
        comparison = compare(options.runs, options.by, each=options.each)
    print(render(comparison, options.top))
    if options.csv:
        print(f"{write_csv(comparison, options.csv)} rows in {options.csv}")
    if options.plot:
        from project.reporting.compare_plot import draw  # imports matplotlib, which takes 1 to 2 s

        draw(comparison, options.plot)
        print(f"drawn in {options.plot}")


@dataclass(frozen=True)
class TableColumn:
    """Column of a table of ranked points."""

    kind: Literal["rank", "key", "by", "metric", "n", "time", "run"]
    name: str
    cells: list[str]
    values: Sequence[float | None]  # numbers in the cells; None for text

    @property
    def width(self) -> int:
        """Width in terminal columns."""
        return max(map(columns_of, [self.name, *self.cells]))


def ranked_columns(comparison: Comparison, points: Sequence[Point]) -> list[TableColumn]:
    """Return columns of rank, keys, metrics, number of runs and duration; the ranking metric comes first."""
    ranked = [point.is_ranked(comparison.by) for point in points]
    ranks = [rank if is_ranked else None for rank, is_ranked in enumerate(ranked, start=1)]
    columns = [TableColumn("rank", "#", ["" if rank is None else str(rank) for rank in ranks], ranks)]
    keys = [*comparison.shown.leading, *(comparison.shown.repetitions if comparison.each else ())]
    columns += key_columns(comparison.shown, [point.runs[0] for point in points], keys)
    for metric in choose_metrics(comparison.metrics, comparison.by):
        kind: Literal["by", "metric"] = "by" if metric == comparison.by else "metric"
        means = [point.mean(metric) for point in points]
        columns.append(TableColumn(kind, metric, score_texts(points, metric), means))
    if comparison.count > len(comparison.points):
        scores = [point.score(comparison.by) for point in points]
        counts = [len(score.values) for score in scores]
        columns.append(TableColumn("n", "n", [score.count for score in scores], counts))
    times = [point.mean(DURATION) for point in points]
    return [*columns, TableColumn("time", "time", list(map(duration, times)), times)]


def key_columns(differences: Differences, runs: Sequence[Run], keys: Sequence[str]) -> list[TableColumn]:
    """Return one column per key, with the value of each run."""
    names = short_names(keys, RESERVED)
    columns = []
    for key in keys:
        values = [differences.value(run, key) for run in runs]
        numbers = [value if is_number(value) else None for value in values]
        cells = [shorten(cell, MAX_WIDTH) for cell in differences.texts(runs, key)]
        columns.append(TableColumn("key", shorten(names[key], MAX_WIDTH), cells, numbers))
    return columns


def choose_metrics(names: Sequence[str], by: str) -> list[str]:
    """Return the metrics to show: `by`, its values on other splits, and the rest without training metrics."""
    rest = [name for name in names if not is_of_split(name, "train") and not name.endswith("/images")]
    wanted = dict.fromkeys([by, *on_other_splits(by, rest), *sorted(rest, reverse=True)])
    return [metric for metric in wanted if metric == by or metric in rest]


def render(comparison: Comparison, top: int, width: int | None = None) -> str:
    """Return a comparison as text tables, one per data set, with notes.

    Args:
        comparison: ranked points.
        top: maximum number of rows of a table.
        width: width of the table in columns (default None: of the terminal).
    """
    width = terminal_width() if width is None else width
    groups = _group_by_data(comparison)
    lines = [_title(comparison, len(groups)), ""]
    left_out: dict[str, None] = {}
    for data, points in groups.items():
        lines += [f"data={data}"] if len(groups) > 1 else []
        columns = [*ranked_columns(comparison, points[:top]), _run_column(comparison, points[:top])]
        if len(groups) > 1:
            columns = [column for column in columns if (column.kind, column.name) != ("key", DATA)]
        kept = _fit(columns, width)
        left_out |= dict.fromkeys(column.name for column in columns if column not in kept)
        heads = [
            Column(column.name, right=False if column.kind == "run" else None, fixed=True) for column in kept
        ]
        rows = list(zip(*(column.cells for column in kept), strict=True))
        styles = {0: BEST_STYLE} if points[0].is_ranked(comparison.by) else {}
        lines += [table(heads, rows, width=width, row_styles=styles), ""]
    for note in _notes(comparison, groups, top, list(left_out)):
        lines += textwrap.wrap(note, width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(
        [*lines, *(shorten(line, width, keep="start") for line in _describe_unranked(comparison))]
    )


def _group_by_data(comparison: Comparison) -> dict[str, list[Point]]:
    """Return the points by data set, best first: results on different data have no common rank."""
    parts = (DATA, *(f"{DATA}.{name}" for name in DATA_LOCATIONS))
    keys = [key for key in parts if key in comparison.shown.keys]
    groups: dict[str, list[Point]] = {}
    for point in comparison.points:
        texts = [comparison.shown.texts([point.runs[0]], key)[0] for key in keys]
        groups.setdefault(" ".join(text for text in texts if text != ABSENT), []).append(point)
    return groups


def _run_column(comparison: Comparison, points: Sequence[Point]) -> TableColumn:
    """Return a column with the name of each point's best run, with its folder if ambiguous."""
    places = {run.folder: place for place, run in enumerate(comparison.best_first)}
    runs = [min(point.runs, key=lambda run: places.get(run.folder, len(places))) for point in points]
    count = Counter(run.folder.name for run in runs)
    names = [
        run.folder.name if count[run.folder.name] == 1 else f"{run.folder.parent.name}/{run.folder.name}"
        for run in runs
    ]
    title = "best run" if any(len(point.runs) > 1 for point in points) else "run"
    return TableColumn("run", title, [shorten(name, MAX_WIDTH) for name in names], [None] * len(names))


def _title(comparison: Comparison, data_sets: int) -> str:
    counted = plural(comparison.count, "run")
    if len(comparison.points) < comparison.count:
        counted += f" in {plural(len(comparison.points), 'point')}: mean ± sample std over n seeds"
    order = f"{'largest' if comparison.larger_is_better else 'smallest'} {comparison.by} first"
    return f"{counted}; {order}" if data_sets == 1 else f"{counted} on {data_sets} data sets; {order} in each"


def _fit(columns: Sequence[TableColumn], width: int) -> list[TableColumn]:
    """Return the most important columns that fit the width; rank and ranking metric are always included."""
    of = defaultdict[str, list[TableColumn]](list)
    for column in columns:
        of[column.kind].append(column)
    keys = sorted(of["key"], key=lambda column: column.name.rpartition(".")[2] != "lr")  # otherwise in order
    wanted = [*of["rank"], *of["by"], *keys[:2], *of["metric"][:1], *of["n"], *of["run"], *keys[2:]]
    wanted += [*of["time"], *of["metric"][1:]]
    kept, room = [], width + len(GAP)
    for column in wanted:
        if column.kind in ("rank", "by") or column.width + len(GAP) <= room:
            kept.append(column)
            room -= column.width + len(GAP)
    return [column for column in columns if column in kept]


def _notes(
    comparison: Comparison, groups: Mapping[str, Sequence[Point]], top: int, left_out: Sequence[str]
) -> list[str]:
    """Return notes on the best run, ties, repeated seeds, and hidden rows and columns."""
    notes = [f"best run: {comparison.best.folder}"] if comparison.best and len(groups) == 1 else []
    notes += [note] if (note := tie_note(comparison.ties)) and len(groups) == 1 else []
    for data, points in groups.items() if len(groups) > 1 else ():
        own = {run.folder for point in points for run in point.runs}
        best = next((run for run in comparison.best_first if run.folder in own), None)
        notes += [f"best run of data={data}: {best.folder}"] if best else []
    if comparison.repeated and not comparison.each:
        notes.append(f"counted once: {plural(comparison.repeated, 'run')} with the seed of another one")
    if (hidden := sum(max(0, len(points) - top) for points in groups.values())) > 0:
        most = max(map(len, groups.values()))
        notes.append(f"not shown: {plural(hidden, 'point')}; top={most} shows all")
    missing = []
    if left_out:
        missing.append(f"{plural(len(left_out), 'column')} without room ({', '.join(left_out)})")
    if following := comparison.shown.following:
        missing.append(f"{plural(len(following), 'key')} that only follow from these")
    if missing:
        notes.append(f"csv=FILE has all: also {' and '.join(missing)}")
    return notes


def _describe_unranked(comparison: Comparison) -> list[str]:
    """Return lines that list unfinished and damaged runs."""
    lines = []
    if comparison.unfinished:
        counts = Counter(run.state for run in comparison.unfinished)
        lines = [f"not ranked: {', '.join(f'{count} {state}' for state, count in counts.items())}"]
        lines += [f"  {run.state}  {run.folder}  {run.error}".rstrip() for run in comparison.unfinished]
        lines = _first(lines, MAX_NAMED + 1)
    if comparison.damaged:
        lines += [f"skipped: {plural(len(comparison.damaged), 'damaged run')}"]
        lines += _first([f"  {reason}" for reason in comparison.damaged], MAX_NAMED)
    return lines


def _first(lines: list[str], most: int) -> list[str]:
    return lines if len(lines) <= most else [*lines[:most], f"  … and {len(lines) - most} more"]


def write_csv(comparison: Comparison, file: Path) -> int:
    """Write a CSV file with one row per point, or with one row per run for `each=true`.

    Rows per run include unfinished runs, at the end and without a rank.

    Returns:
        Number of rows.

    Raises:
        InputError: the file cannot be written.
    """
    rows = list(_run_rows(comparison) if comparison.each else _point_rows(comparison))
    with (
        output_file(f"csv={file}", file) as partial,
        partial.open("w", newline="", encoding="utf-8") as stream,
    ):
        cells = [list(rows[0]), *([row.get(key, "") for key in rows[0]] for row in rows)]
        csv.writer(stream).writerows(map(escape_all, cells))
    return len(rows)


def _point_rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    for rank, point in enumerate(comparison.points, start=1):
        row: dict[str, Any] = {"rank": rank, "n": len(point.distinct), "unfinished": point.unfinished}
        row |= _key_values(comparison, point.runs[0])
        for metric in [*comparison.metrics, DURATION]:
            row |= {
                metric: _number(point.mean(metric)),
                f"{metric} std": _number(point.std(metric)),
                f"{metric} n": len(point.score(metric).values),
            }
        yield row | {"folders": " ".join(str(run.folder) for run in point.runs)}


def _run_rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    ranked = [point.runs[0] for point in comparison.points]
    for rank, run in enumerate([*ranked, *comparison.unfinished], start=1):
        row: dict[str, Any] = {"rank": rank if run.done else "", "folder": run.folder, "state": run.state}
        row |= _key_values(comparison, run)
        row |= {key: format_value(run.config.get(key, "")) for key in comparison.everywhere.repetitions}
        for metric in [*comparison.metrics, DURATION]:
            row[metric] = _number(run.metrics[metric]) if metric in run.metrics else ""
        yield row | {"started": run.started, "error": run.error}


def _key_values(comparison: Comparison, run: Run) -> dict[str, str]:
    """Return a run's values of all keys that differ, by full name; empty for missing keys."""
    keys = comparison.everywhere
    values = {key: keys.value(run, key) for key in dict.fromkeys([*keys.leading, *keys.keys])}
    return {key: "" if value is ABSENT else format_value(value) for key, value in values.items()}


def _number(value: float) -> float | str:
    """Return a number for a CSV cell; NaN as `nan`, since an empty cell means not measured."""
    return "nan" if math.isnan(value) else value
