"""How a metric went in training, for each point the mean over its runs."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from project.runs.collect import Comparison
from project.runs.metrics_csv import read_metrics


@dataclass(frozen=True)
class Curve:
    """A point's mean over its runs.

    Args:
        x: epochs or steps done, rising.
        mean: of the metric, one for each x.
        std: sample standard deviation, 0 where there is one run.
    """

    x: list[float]
    mean: list[float]
    std: list[float]


def read_curves(comparison: Comparison) -> tuple[str, str, list[Curve]]:
    """Read how the metric that ranks the runs went, or the validation metric of the same kind.

    Returns:
        The metric's name, `epoch` or `step`, and a curve a point; empty for a point without a table.
    """
    tables = [[_read(run.folder / "metrics.csv") for run in point.distinct] for point in comparison.points]
    metric = _choose_metric(comparison, (table for group in tables for table in group))
    every = [_series(table, metric, "epoch") for group in tables for table in group]
    epochs = [x for series in every for x in series]
    # Several validations an epoch, or only a part of one: steps tell them apart.
    by_epoch = all(len(series) == len(dict(series)) for series in every) and len({x for x, _ in epochs}) > 1
    axis = "epoch" if by_epoch else "step"
    curves = [_mean([dict(_series(table, metric, axis)) for table in group]) for group in tables]
    return metric, axis, curves


def _read(file: Path) -> list[dict[str, str]]:
    """The rows of a table, none if it is missing or damaged: a picture can do without."""
    try:
        columns, found = read_metrics(file)
    except OSError:
        return []
    rows = [dict(zip(columns, row, strict=True)) for row in found]
    for row in rows:
        if any(value for name, value in row.items() if name and name.startswith("test/")):
            with suppress(KeyError, TypeError, ValueError):
                row["epoch"] = str(float(row["epoch"]) - 1)  # the test's row counts the epochs that are done
    return rows


def _choose_metric(comparison: Comparison, tables: Iterable[list[dict[str, str]]]) -> str:
    """The first metric wanted that was measured more than once: a test is one number a run."""
    kind = comparison.by.rpartition("/")[2]
    monitors = [run.monitor for point in comparison.points for run in point.runs]
    wanted = list(dict.fromkeys([comparison.by, f"val/{kind}", *monitors, "val/loss", "train/loss"]))
    lengths: dict[str, int] = defaultdict(int)
    for table in tables:
        for metric in wanted:
            if table and metric in table[0] and lengths[metric] < 2:
                lengths[metric] = max(lengths[metric], len(_series(table, metric, "step")))
    return next((metric for metric in wanted if lengths[metric] > 1), wanted[1])


def _series(table: list[dict[str, str]], metric: str, axis: str) -> list[tuple[float, float]]:
    pairs = []
    for row in table:
        try:
            x, value = float(row[axis]), float(row[metric])
        except (KeyError, TypeError, ValueError):
            continue  # another metric's row
        pairs.append((x + (axis == "epoch"), value))  # epochs are counted from 0, and written when done
    return pairs


def _mean(series: list[dict[float, float]]) -> Curve:
    """Average where at least half of the runs have a value: some were stopped earlier than others.

    It ends where one run's value is no number.
    """
    positions = sorted({x for one in series for x in one})
    x, mean, std = [], [], []
    for position in positions:
        values = [one[position] for one in series if position in one]
        if not all(map(math.isfinite, values)):
            break
        if 2 * len(values) >= len(series):
            x.append(position)
            mean.append(statistics.fmean(values))
            std.append(statistics.stdev(values) if len(values) > 1 else 0.0)
    return Curve(x, mean, std)
