"""Figure of a comparison: parallel coordinates above, learning curves below."""

import math
import statistics
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from project.figures.charts import COLORS, Line, draw_lines, figure_style
from project.figures.parallel_coordinates import (
    HEADING_CHARACTERS,
    ParallelAxis,
    draw_parallel,
    key_axis,
    metric_axis,
)
from project.reporting.run_data import Series, read_series
from project.runs.comparison import RESERVED, Comparison, score_texts
from project.runs.hparam_diff import ABSENT, short_names
from project.runs.metric_names import parse
from project.runs.results import Run
from project.runtime.output_files import MADE_BY, output_file
from project.runtime.text import plural

MAX_KEYS = 10
LEGEND_WIDTH = 42
"""Maximum number of characters in a line of the legend."""
DPI = 150


@dataclass(frozen=True)
class Curve:
    """Learning curve of a point: mean of a metric over its runs."""

    x: list[float]  # finished epochs or steps, ascending
    mean: list[float]
    std: list[float]  # sample standard deviation; 0 for a single run


def read_curves(comparison: Comparison) -> tuple[str, str, list[Curve]]:
    """Read the learning curves of the ranking metric, or of the corresponding validation metric.

    Returns:
        Name of the metric, `epoch` or `step`, and one curve per point and run that was `stopped_early`; empty
        without `metrics.csv`.
    """
    runs = [*(point.distinct for point in comparison.points), *([run] for run in stopped_early(comparison))]
    groups = [[read_series(run.folder / "metrics.csv") for run in group] for group in runs]
    metric = _choose_metric(comparison, [series for group in groups for series in group])
    every = [series.get(metric, Series()) for group in groups for series in group]
    epochs = {epoch for series in every for epoch in series.epochs}
    # Several validations per epoch, or less than two epochs: steps distinguish the values.
    is_by_epoch = all(len(series.epochs) == len(set(series.epochs)) for series in every) and len(epochs) > 1
    curves = []
    for group in groups:
        courses = []
        for series in (run.get(metric, Series()) for run in group):
            x = [epoch + 1 for epoch in series.epochs] if is_by_epoch else series.steps
            courses.append(dict(zip(x, series.values, strict=True)))
        curves.append(_mean(courses))
    return metric, "epoch" if is_by_epoch else "step", curves


def stopped_early(comparison: Comparison) -> list[Run]:
    """Return the runs that a search pruned or paused."""
    return [run for run in comparison.unfinished if run.state in ("pruned", "paused")]


def _choose_metric(comparison: Comparison, runs: Sequence[Mapping[str, Series]]) -> str:
    """Return the first candidate that was logged more than once: test metrics are logged once."""
    kind = parse(comparison.by).kind
    monitors = [run.monitor for point in comparison.points for run in point.runs]
    wanted = list(
        dict.fromkeys([comparison.by, f"val/{kind}", f"val_{kind}", *monitors, "val/loss", "train/loss"])
    )
    several = {name for series in runs for name, one in series.items() if len(one.values) > 1}
    return next((metric for metric in wanted if metric in several), wanted[1])


def _mean(courses: list[dict[float, float]]) -> Curve:
    """Average positions where at least half of the runs have a value; stop at the first NaN or infinity."""
    curve = Curve([], [], [])
    for position in sorted({x for course in courses for x in course}):
        values = [course[position] for course in courses if position in course]
        if not all(map(math.isfinite, values)):
            break
        if 2 * len(values) >= len(courses):
            curve.x.append(position)
            curve.mean.append(statistics.fmean(values))
            curve.std.append(statistics.stdev(values) if len(values) > 1 else 0.0)
    return curve


def curve_lines(comparison: Comparison) -> tuple[str, str, list[Line]]:
    """Return metric, axis label, and one line per curve (see `read_curves`); the best points are colored."""
    metric, axis, curves = read_curves(comparison)
    names = point_labels(comparison)
    num_colored = min(len(names), len(COLORS))
    names += [f"{run.state}: {run.folder.name}" for run in stopped_early(comparison)]
    lines = [
        Line(
            names[rank],
            curve.x,
            curve.mean,
            color=rank if rank < num_colored else None,
            std=curve.std if rank < num_colored and any(curve.std) else (),
        )
        for rank, curve in enumerate(curves)
        if curve.x
    ]
    return metric, axis, lines


def point_labels(comparison: Comparison) -> list[str]:
    """Return a label for each point: its score, and its values of the keys that differ."""
    points, shown = comparison.points, comparison.shown
    keys = _keys(comparison)
    names = short_names(keys, RESERVED)
    first = [point.runs[0] for point in points]
    parts: list[list[str]] = [[] for _ in points]
    for key in keys:
        is_bare = all(isinstance(shown.value(run, key), str) for run in first)
        for part, text in zip(parts, shown.texts(first, key), strict=True):
            if text != ABSENT:
                part.append(text if is_bare else f"{names[key]}\N{NO-BREAK SPACE}{text}")
    values = score_texts(points, comparison.by)
    return [
        f"{value}: {', '.join(part)}".removesuffix(": ") for value, part in zip(values, parts, strict=True)
    ]


def _keys(comparison: Comparison) -> list[str]:
    return [*comparison.shown.leading, *(comparison.shown.repetitions if comparison.each else ())]


def parallel_axes(
    comparison: Comparison, most: int = MAX_KEYS, log_keys: Collection[str] = ()
) -> list[ParallelAxis]:
    """Return one axis for each of the first `most` keys that differ, and one for the metric.

    The axes of `log_keys`, whose search space is logarithmic, are logarithmic at any ratio of their values.
    """
    shown = comparison.shown
    keys = _keys(comparison)[:most]
    names = short_names(keys, RESERVED)
    first = [point.runs[0] for point in comparison.points]
    widest = min(HEADING_CHARACTERS // (len(keys) + 1), 14)
    scales = [
        key_axis(
            names[key],
            [shown.value(run, key) for run in first],
            shown.texts(first, key),
            widest,
            is_log=key in log_keys,
        )
        for key in keys
    ]
    means = [point.mean(comparison.by) for point in comparison.points]
    return [*scales, metric_axis(comparison.by, means, larger_is_better=comparison.larger_is_better)]


def draw(comparison: Comparison, file: Path) -> None:
    """Write the figure of a comparison to a file.

    Args:
        comparison: ranked points.
        file: output file; its extension determines the format (.png, .svg or .pdf).

    Raises:
        InputError: the file cannot be written.
    """
    kind = file.suffix.lower().removeprefix(".")
    metadata = {"Software" if kind == "png" else "Creator": MADE_BY}
    with figure_style(), output_file(f"plot={file}", file) as partial:
        make_figure(comparison).savefig(partial, format=kind, metadata=metadata)


def make_figure(comparison: Comparison) -> Figure:
    """Return the figure of a comparison; it shows only learning curves if no key differs."""
    scales = parallel_axes(comparison)
    if len(scales) == 1:
        figure = Figure(figsize=(11, 4.6), dpi=DPI)
        _draw_curves(figure.add_axes((0.08, 0.12, 0.6, 0.76)), comparison)
        return figure
    figure = Figure(figsize=(11, 8.2), dpi=DPI)
    above = figure.add_axes((0.08, 0.575, 0.84, 0.335))
    draw_parallel(above, scales, [f"rank {rank + 1}" for rank in range(len(comparison.points))])
    _set_title(above, _parallel_title(comparison, len(scales) - 1), pad=40)
    _draw_curves(figure.add_axes((0.08, 0.075, 0.6, 0.38)), comparison)
    return figure


def _parallel_title(comparison: Comparison, num_keys: int) -> str:
    title = f"{comparison.by} of {plural(comparison.count, 'run')}"
    if len(comparison.points) < comparison.count:
        title += f", the mean over seeds in {plural(len(comparison.points), 'point')}"
    left_out = len(_keys(comparison)) - num_keys
    return title + (f"; {plural(left_out, 'key')} left out" if left_out > 0 else "")


def _draw_curves(axes: Axes, comparison: Comparison) -> None:
    metric, axis, lines = curve_lines(comparison)
    has_repetitions = any(len(point.runs) > 1 for point in comparison.points)
    _set_title(axes, f"{metric} in training" + (": mean ± std over seeds" if has_repetitions else ""))
    if not lines:
        axes.text(0.5, 0.5, "no metrics.csv with this metric", ha="center", transform=axes.transAxes)
        return
    draw_lines(axes, lines, x_label=axis, may_be_log=not comparison.larger_is_better)
    axes.set_ylabel(metric)
    drawn = axes.get_lines()[::-1]  # the best line is drawn last
    handles = [handle for handle, line in zip(drawn, lines, strict=True) if line.color is not None]
    labels = [
        "\n".join(textwrap.wrap(line.name, LEGEND_WIDTH, max_lines=3, placeholder=" …"))
        for line in lines
        if line.color is not None
    ]
    count, most, stopped = len(comparison.points), len(COLORS), len(stopped_early(comparison))
    title = f"the best {most} of {count}; others gray" if count > most else None
    if stopped and title is None:
        title = f"gray: {plural(stopped, 'pruned or paused run')}"
    axes.legend(
        handles,
        labels,
        title=title,
        loc="upper left",
        bbox_to_anchor=(1.02, 1.02),
        fontsize=8,
        alignment="left",
    )


def _set_title(axes: Axes, title: str, pad: int = 10) -> None:
    axes.set_title(title, loc="left", fontweight="bold", fontsize=11, pad=pad)
