"""A comparison as a CSV file with everything in it."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from project.errors import InputError
from project.runs.collect import Comparison
from project.runs.hparam_diff import ABSENT, text
from project.runs.results import DURATION, Run
from project.runtime.csv_cells import escape_all
from project.runtime.write_probe import whole_file


def write_csv(comparison: Comparison, file: Path) -> int:
    """Write all rows and all columns: a row a point, or a row a run where each is ranked.

    The rows of runs hold the unfinished ones too, behind the others and without a rank.

    Returns:
        The number of rows.

    Raises:
        InputError: the file cannot be written.
    """
    rows = list(_runs(comparison) if comparison.each else _points(comparison))
    try:
        with whole_file(file) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
            table = [list(rows[0]), *([row.get(key, "") for key in rows[0]] for row in rows)]
            csv.writer(stream).writerows(map(escape_all, table))
    except OSError as error:
        raise InputError(
            f"--csv {file}: cannot be written ({error.strerror}); give one that you may write to"
        ) from error
    return len(rows)


def _points(comparison: Comparison) -> Iterator[dict[str, Any]]:
    for rank, point in enumerate(comparison.points, start=1):
        row: dict[str, Any] = {"rank": rank, "n": len(point.distinct), "unfinished": point.unfinished}
        row |= _values(comparison, point.runs[0])
        for metric in [*comparison.metrics, DURATION]:
            row |= {
                metric: _cell(point.mean(metric)),
                f"{metric} std": _cell(point.std(metric)),
                f"{metric} n": len(point.score(metric).values),
            }
        yield row | {"folders": " ".join(str(run.folder) for run in point.runs)}


def _runs(comparison: Comparison) -> Iterator[dict[str, Any]]:
    ranked = [point.runs[0] for point in comparison.points]
    for rank, run in enumerate([*ranked, *comparison.unfinished], start=1):
        row: dict[str, Any] = {"rank": rank if run.done else "", "folder": run.folder, "state": run.state}
        row |= _values(comparison, run)
        row |= {key: text(run.config.get(key, "")) for key in comparison.everywhere.repetitions}
        for metric in [*comparison.metrics, DURATION]:
            row[metric] = _cell(run.metrics.get(metric, math.nan)) if metric in run.metrics else ""
        yield row | {"started": run.started, "error": run.error}


def _values(comparison: Comparison, run: Run) -> dict[str, str]:
    """A run's value of every key that differs, by full name; empty where it has none."""
    keys = comparison.everywhere
    named = {key: keys.value(run, key) for key in dict.fromkeys([*keys.told, *keys.keys])}
    return {key: "" if value is ABSENT else text(value) for key, value in named.items()}


def _cell(value: float) -> float | str:
    """A number in full; `nan` says that it was measured so."""
    return "nan" if math.isnan(value) else value
