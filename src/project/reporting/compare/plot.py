"""A comparison as a picture: parallel coordinates above, learning curves below."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from project.errors import InputError
from project.reporting.compare.curves import read_curves
from project.reporting.compare.scales import BELOW, SPAN_FOR_LOG, Scale, metric_scale, scale
from project.runs.collect import Comparison
from project.runs.earlier_output import MADE_BY
from project.runs.hparam_diff import ABSENT, short_names
from project.runs.table import RESERVED, numbers, plural, shorten
from project.runtime.write_probe import whole_file

MOST_AXES = 10
MOST_NAMED = 8  # curves in the legend
LEGEND_WIDTH = 42  # characters
ACROSS = 104  # characters of a heading's size that fit side by side
GREY = "#c4c7cc"
INK = "#30343b"
# viridis without its palest end, which is hard to see on white
_SHADES = ListedColormap(mpl.colormaps["viridis"](np.linspace(0, 0.92, 256)))
SHADES = {True: _SHADES, False: _SHADES.reversed()}
"""By whether larger values are better: the brightest is the best."""
STYLE = {
    "font.size": 9,
    "axes.edgecolor": "#8a8f98",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a $ in a value is a $
}


def draw(comparison: Comparison, file: Path) -> None:
    """Draw all points of a comparison.

    Args:
        comparison: what to draw.
        file: its ending tells the format: .png, .svg or .pdf.

    Raises:
        InputError: the file cannot be written.
    """
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        try:
            kind = file.suffix.lower().removeprefix(".")
            metadata = {"Software" if kind == "png" else "Creator": MADE_BY}
            with whole_file(file) as partial:
                picture(comparison).savefig(partial, format=kind, metadata=metadata)
        except OSError as error:
            raise InputError(
                f"--plot {file}: cannot be written ({error.strerror}); give one that you may write to"
            ) from error


def picture(comparison: Comparison) -> Figure:
    """Make the figure; where points do not differ in any key, of the curves alone."""
    scales = _scales(comparison)
    if len(scales) == 1:
        figure = Figure(figsize=(11, 4.6), dpi=150)
        _draw_curves(figure.add_axes((0.08, 0.12, 0.6, 0.76)), comparison)
        return figure
    figure = Figure(figsize=(11, 8.2), dpi=150)
    _draw_parallel(figure.add_axes((0.08, 0.575, 0.84, 0.335)), scales, comparison)
    _draw_curves(figure.add_axes((0.08, 0.075, 0.6, 0.38)), comparison)
    return figure


def _scales(comparison: Comparison) -> list[Scale]:
    """An axis for each key that tells points apart, and one for the metric."""
    shown = comparison.shown
    keys = _keys(comparison)[:MOST_AXES]
    names = short_names(keys, RESERVED)
    first = [point.runs[0] for point in comparison.points]
    room = ACROSS // (len(keys) + 1)
    scales = [
        scale(names[key], [shown.value(run, key) for run in first], shown.texts(first, key), min(room, 14))
        for key in keys
    ]
    means = [point.mean(comparison.by) for point in comparison.points]
    return [*scales, metric_scale(comparison.by, means, larger_is_better=comparison.larger_is_better)]


def _keys(comparison: Comparison) -> list[str]:
    return [*comparison.shown.told, *(comparison.shown.repetitions if comparison.each else ())]


def _draw_parallel(axes: Axes, scales: Sequence[Scale], comparison: Comparison) -> None:
    """Draw a line a point through all axes, coloured by the metric; the last axis is the colour bar."""
    count = len(comparison.points)
    spread = (np.arange(count) / max(count - 1, 1) - 0.5) * min(0.06, 0.012 * count)
    places = np.stack(
        [np.array(scale.places) - (spread if scale.crowded else 0) for scale in scales], axis=1
    )  # points, axes
    fine = np.linspace(0, len(scales) - 1, 24 * (len(scales) - 1) + 1)
    left = np.minimum(fine.astype(int), len(scales) - 2)
    share = fine - left
    share = share * share * (3 - 2 * share)  # leaves every axis at a right angle
    lines = places[:, left] * (1 - share) + places[:, left + 1] * share  # points, positions
    measured = np.array([math.isfinite(point.mean(comparison.by)) for point in comparison.points])
    bottom = 0.0 if measured.all() else BELOW
    shades = SHADES[comparison.larger_is_better]
    colors = shades((np.array(scales[-1].places) - bottom) / (1 - bottom))
    colors[~measured] = mpl.colors.to_rgba(GREY)
    alpha = 0.9 if count <= 15 else 0.65 if count <= 100 else 0.3
    widths = np.where(np.arange(count) == 0, 3.0, 1.8 if count <= 15 else 1.2)
    order = np.arange(count)[::-1]  # the best on top
    segments = [np.column_stack([fine, lines[number]]) for number in order]
    axes.add_collection(LineCollection(segments, colors=colors[order], linewidths=widths[order], alpha=alpha))
    end = len(scales) - 1
    room = ACROSS // len(scales)
    staggered = max(len(scale.name) for scale in scales) > room  # headings by turns lower and higher
    for number, axis in enumerate(scales):
        heading = shorten(axis.name, 2 * room - 2 if staggered else room)
        axes.text(number, 1.14 if staggered and number % 2 else 1.07, heading, ha="center", fontweight="bold")
        _draw_axis(axes, number, axis, last=number == end)
    strip = 0.016 * end
    axes.imshow(np.linspace(0, 1, 256)[:, None], cmap=shades, vmin=0, vmax=1, origin="lower", aspect="auto",
                extent=(end, end + strip, bottom, 1), zorder=3)  # fmt: skip
    axes.set(xlim=(-0.02 * end, end + strip), ylim=(-0.05, 1.05), yticks=[], xticks=[])
    axes.spines[:].set_visible(False)
    left_out = len(_keys(comparison)) - end
    title = f"{comparison.by} of {plural(comparison.count, 'run')}"
    if count < comparison.count:
        title += f", the mean over seeds in {plural(count, 'point')}"
    if left_out > 0:
        title += f"; {plural(left_out, 'key')} left out"
    axes.set_title(title, loc="left", fontweight="bold", fontsize=11, pad=40 if staggered else 28)


def _draw_axis(axes: Axes, position: int, scale: Scale, *, last: bool) -> None:
    axes.plot([position, position], [-0.03, 1.03], color="#8a8f98", linewidth=1, zorder=4)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
    for place, text in scale.ticks:
        axes.annotate(
            text,
            (position, place),
            xytext=(18 if last else -5, 0),
            textcoords="offset points",
            ha="left" if last else "right",
            va="center",
            fontsize=8,
            bbox=box,
            zorder=5,
        )
        axes.plot([position], [place], marker="_", markersize=5, color="#8a8f98", zorder=4)


def _draw_curves(axes: Axes, comparison: Comparison) -> None:
    metric, unit, curves = read_curves(comparison)
    palette = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]
    colors = [color for number, color in enumerate(palette) if number != 7]  # its grey is the others'
    names = _legend(comparison)
    grey = [np.column_stack([curve.x, curve.mean]) for curve in curves[MOST_NAMED:] if curve.x]
    axes.add_collection(LineCollection(grey, colors=GREY, linewidths=0.9, zorder=2))
    for rank, curve in reversed(list(enumerate(curves[:MOST_NAMED]))):  # the best on top
        if not curve.x:
            continue
        mean, std = np.array(curve.mean), np.array(curve.std)
        marker = "o" if len(curve.x) < 12 else None
        axes.plot(curve.x, mean, color=colors[rank], linewidth=1.8, marker=marker, markersize=3.5, zorder=3,
                  label=names[rank])  # fmt: skip
        if std.any():
            axes.fill_between(curve.x, mean - std, mean + std, color=colors[rank], alpha=0.15, linewidth=0)
    positive = [value for curve in curves for value in curve.mean]
    if not comparison.larger_is_better and positive and 0 < min(positive) * SPAN_FOR_LOG < max(positive):
        axes.set_yscale("log")  # a loss that grew out of bounds in one run
    several = any(len(point.runs) > 1 for point in comparison.points)
    title = f"{metric} in training" + (": mean ± std over seeds" if several else "")
    axes.set_title(title, loc="left", fontweight="bold", fontsize=11, pad=10)
    axes.set(xlabel=unit, ylabel=metric)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(8, integer=True))
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        axes.text(0.5, 0.5, "no metrics.csv with this metric", ha="center", transform=axes.transAxes)
        return
    others = len(curves) - MOST_NAMED
    axes.legend(
        handles[::-1],
        labels[::-1],
        title=f"the best {MOST_NAMED} of {len(curves)}; others grey" if others > 0 else None,
        loc="upper left",
        bbox_to_anchor=(1.02, 1.02),
        frameon=False,
        fontsize=8,
        alignment="left",
    )


def _legend(comparison: Comparison) -> list[str]:
    """What each of the best points is told by, and its value."""
    points = comparison.points[:MOST_NAMED]
    shown = comparison.shown
    keys = _keys(comparison)
    names = short_names(keys, RESERVED)
    first = [point.runs[0] for point in points]
    parts: list[list[str]] = [[] for _ in points]
    for key in keys:
        bare = all(isinstance(shown.value(run, key), str) for run in first)
        for part, text in zip(parts, shown.texts(first, key), strict=True):
            if text != ABSENT:
                part.append(text if bare else f"{names[key]}\N{NO-BREAK SPACE}{text}")
    return [
        "\n".join(textwrap.wrap(f"{value}   {', '.join(part)}", LEGEND_WIDTH, max_lines=3, placeholder=" …"))
        for value, part in zip(numbers(points, comparison.by), parts, strict=True)
    ]
