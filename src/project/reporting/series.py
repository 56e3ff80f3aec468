"""Logged metrics of a run, by name."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from project.runtime.csv_cells import read_metrics


@dataclass(frozen=True)
class Series:
    """Values logged under one name."""

    steps: list[float] = field(default_factory=list)  # of the optimizer, done before each value
    epochs: list[float] = field(default_factory=list)  # begun before each value, from 0
    values: list[float] = field(default_factory=list)


def read_series(file: Path) -> dict[str, Series]:
    """Read `metrics.csv`: each column with the rows in which it has a number."""
    found: dict[str, Series] = {}
    try:
        head, rows = read_metrics(file)
    except OSError:
        return {}
    if not head:
        return {}
    step, epoch = head.index("step"), head.index("epoch") if "epoch" in head else None
    columns = [(place, name) for place, name in enumerate(head) if name not in ("step", "epoch")]
    tests = [place for place, name in columns if name.startswith("test/")]
    for row in rows:
        # The test's row has the number of epochs done, other rows that of the one begun.
        is_test = any(row[place] for place in tests)
        for place, name in columns:
            if not row[place] or (epoch is not None and not row[epoch]):
                continue
            at = float(row[step]), float(row[epoch]) - is_test if epoch is not None else 0.0
            if all(map(math.isfinite, at)):
                series = found.setdefault(name, Series())
                series.steps.append(at[0])
                series.epochs.append(at[1])
                series.values.append(float(row[place]))
    return found


def steps_per_epoch(series: Mapping[str, Series]) -> float | None:
    """Return the steps of an epoch, by the last value in each; None where epochs differ or are not known."""
    ends: dict[float, float] = {}
    for one in series.values():
        for step, epoch in zip(one.steps, one.epochs, strict=True):
            ends[epoch] = max(step, ends.get(epoch, 0.0))
    last = max(ends, default=-1.0)
    finished = {epoch: end for epoch, end in ends.items() if epoch < last} or ends
    sizes = [end / (epoch + 1) for epoch, end in finished.items()]
    if last < 1 or not sizes or min(sizes) <= 0 or max(sizes) > 1.02 * min(sizes):
        return None
    return max(sizes)
