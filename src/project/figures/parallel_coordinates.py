"""Parallel coordinates: one line per point, crossing an axis per key and, last, the axis of the metric."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import Locator, LogLocator, MaxNLocator

from project.figures.charts import COLORS, DIM, FAINT, INK, MIN_RATIO_FOR_LOG, PAPER, set_css
from project.runs.hparam_diff import ABSENT
from project.runs.results import natural_sort_key
from project.runtime.text import shorten

MAX_TICKS = 9
MIN_TICK_DISTANCE = 0.06  # fraction of the axis height
MIN_POINTS_FOR_FENCE = 8
MISSING_SPACE = 0.14  # fraction of the axis height below the numbers, for missing values
HEADING_CHARACTERS = 104  # characters of all headings that fit in a row
SPREAD = 0.07  # fraction of the axis height over which lines through the same value are spread


@dataclass(frozen=True)
class ParallelAxis:
    """Vertical axis with the position of each point."""

    name: str  # heading
    places: list[float]  # position of each point, from 0 (bottom) to 1 (top)
    ticks: list[tuple[float, str]]  # position and text
    is_crowded: bool  # spread the lines of points that share a value


def key_axis(
    name: str, values: Sequence[Any], texts: Sequence[str], widest: int = 14, *, is_log: bool = False
) -> ParallelAxis:
    """Return the axis of a key: on a numeric scale if all values are numbers, else equally spaced.

    Numbers keep their place: ticks whose text would overlap are left out.

    Args:
        name: heading.
        values: value of each point; `ABSENT` and None are placed below the numbers.
        texts: value of each point as text.
        widest: maximum number of characters of a tick (default 14).
        is_log: the search space of the key is logarithmic (default False: decided by the values).
    """
    absent = sorted({text for value, text in zip(values, texts, strict=True) if _is_missing(value)})
    given = [(value, text) for value, text in zip(values, texts, strict=True) if not _is_missing(value)]
    numbers = {value for value, _ in given if type(value) in (int, float) and math.isfinite(value)}
    is_numeric = all(type(value) in (int, float) and math.isfinite(value) for value, _ in given)
    if is_numeric and len(numbers) > 1 and len(absent) <= 1:
        ticks, place = _number_axis(sorted(numbers), MISSING_SPACE if absent else 0.0, is_log=is_log)
        places = [0.0 if _is_missing(value) else place(value) for value in values]
        ticks += [(0.0, text) for text in absent]
        return ParallelAxis(name, places, ticks, is_crowded=len(numbers) <= MAX_TICKS)
    # From bottom to top: missing values, then ascending numbers, or names from Z to A.
    names = [text for _, text in (sorted(given) if is_numeric else given)]
    order = list(
        dict.fromkeys([*absent, *(names if is_numeric else sorted(names, key=natural_sort_key)[::-1])])
    )
    place_of = {text: (number + 0.5) / len(order) for number, text in enumerate(order)}
    ticks = _thin([(place, shorten(text, widest)) for text, place in place_of.items()])
    return ParallelAxis(name, [place_of[text] for text in texts], ticks, is_crowded=True)


def _is_missing(value: Any) -> bool:
    return value is None or value is ABSENT


def _number_axis(
    values: Sequence[float], bottom: float, *, is_log: bool = False
) -> tuple[list[tuple[float, str]], Callable[[float], float]]:
    """Return the ticks of an axis for distinct ascending values, and the function from value to position.

    The axis is logarithmic for positive values that span a factor of at least `MIN_RATIO_FOR_LOG`; a 0 has
    its own place below them, as it has no logarithm. Up to `MAX_TICKS` values have a tick each.
    """
    has_zero = values[0] == 0 and len(values) > 2
    positive = values[1:] if has_zero else values
    low, high = positive[0], positive[-1]
    ratio = high / low if low > 0 else 0.0
    is_log = ratio > 1 if is_log else ratio >= MIN_RATIO_FOR_LOG * (1 - 1e-9)
    if has_zero and not is_log:
        low = 0.0
    start = bottom + MISSING_SPACE if has_zero and is_log else bottom
    inner = _placer(low, high, start, is_log=is_log)

    def place(value: float) -> float:
        return bottom if value == 0 and is_log else inner(value)

    marks = list(values)
    if len(marks) > MAX_TICKS:
        ticks = _inner_ticks(LogLocator(numticks=8) if is_log else MaxNLocator(6), low, high)
        marks = ticks if len(ticks) >= 3 else [low, *ticks, high]
        marks = [0.0, *marks] if has_zero and is_log else marks
    return _thin([(place(mark), f"{mark:.4g}") for mark in marks]), place


def _placer(low: float, high: float, bottom: float, *, is_log: bool = False) -> Callable[[float], float]:
    """Return a function that maps values, clipped to [`low`, `high`], to positions in [`bottom`, 1]."""
    scale: Callable[[float], float] = math.log if is_log else float
    ends = scale(low), scale(high)
    return lambda value: float(np.interp(scale(value), ends, (bottom, 1.0)))


def _inner_ticks(locator: Locator, low: float, high: float) -> list[float]:
    return [float(mark) for mark in locator.tick_values(low, high) if low <= mark <= high]


def metric_axis(name: str, values: Sequence[float], *, larger_is_better: bool) -> ParallelAxis:
    """Return the axis of a metric, with NaN and infinite values at the bottom.

    Outliers that are far worse than the rest, as of diverged runs, are clipped to a tick `≤` or `≥`.
    """
    given = [value for value in values if math.isfinite(value)]
    others = sorted({f"{value:g}" for value in values if not math.isfinite(value)})
    ticks = [(0.0, ", ".join(others))] if others else []
    if len(set(given)) < 2:
        places = [0.5 if math.isfinite(value) else 0.0 for value in values]
        ticks += [(0.5, f"{value:.6g}") for value in given[:1]]
        return ParallelAxis(name, places, ticks, is_crowded=False)
    low, high = _fence(given, larger_is_better=larger_is_better)
    place = _placer(low, high, MISSING_SPACE if others else 0.0)
    ticks += [(place(low), f"≤ {low:.3g}")] if low > min(given) else []
    ticks += [(1.0, f"≥ {high:.3g}")] if high < max(given) else []
    marks = [(place(mark), f"{mark:.6g}") for mark in _inner_ticks(MaxNLocator(7), low, high)]
    free = [mark for mark in marks if all(abs(mark[0] - tick) >= MIN_TICK_DISTANCE for tick, _ in ticks)]
    places = [place(value) if math.isfinite(value) else 0.0 for value in values]
    return ParallelAxis(name, places, ticks + free, is_crowded=False)


def _fence(values: Sequence[float], *, larger_is_better: bool) -> tuple[float, float]:
    """Return the range to draw: without outliers that are 3 interquartile ranges worse than the quartile."""
    low, high = min(values), max(values)
    if len(values) < MIN_POINTS_FOR_FENCE:
        return low, high
    lower, _, upper = statistics.quantiles(values, n=4)
    margin = 3 * (upper - lower)
    if not margin:
        return low, high
    return (max(low, lower - margin), high) if larger_is_better else (low, min(high, upper + margin))


def _thin(ticks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Remove ticks whose text would overlap the tick below."""
    kept: list[tuple[float, str]] = []
    for place, text in sorted(ticks):
        if not kept or place - kept[-1][0] >= MIN_TICK_DISTANCE:
            kept.append((place, text))
    return kept


def draw_parallel(axes: Axes, scales: Sequence[ParallelAxis], titles: Sequence[str]) -> None:
    """Draw one line per point through all axes, the first points in color and on top.

    Args:
        axes: empty axes to draw in.
        scales: at least two axes, with one position per point each.
        titles: tooltip of each point, shown in a page.
    """
    count, end = len(titles), len(scales) - 1
    for number in reversed(range(count)):
        spread = min(SPREAD, 0.012 * count) * ((number + 0.5) / count - 0.5)
        heights = [one.places[number] - (spread if one.is_crowded else 0) for one in scales]
        is_faint = number >= len(COLORS)
        line = PathPatch(
            _smooth(heights),
            facecolor="none",
            edgecolor=FAINT if is_faint else COLORS[number],
            linewidth=1.0 if is_faint else 3.0 if number == 0 else 1.8,
            alpha=0.55 if is_faint else 1.0,
            clip_on=False,
        )
        set_css(line, "line faint" if is_faint else f"line c{number}", titles[number])
        axes.add_patch(line)
    room = HEADING_CHARACTERS // len(scales)
    is_staggered = max(len(one.name) for one in scales) > room  # headings at alternating heights
    for number, one in enumerate(scales):
        heading = shorten(one.name, 2 * room - 2 if is_staggered else room, keep="start")
        height = 1.14 if is_staggered and number % 2 else 1.07
        axes.text(number, height, heading, ha="center", fontweight="bold")
        axes.plot([number, number], [-0.03, 1.03], color=FAINT, linewidth=1, clip_on=False, zorder=4)
        _draw_ticks(axes, number, one.ticks, is_last=number == end)
    axes.set(xlim=(-0.02 * end, 1.01 * end), ylim=(-0.05, 1.05), yticks=[], xticks=[])
    axes.spines[:].set_visible(False)


def _smooth(heights: Sequence[float]) -> Path:
    """Return a Bézier curve that crosses every axis at a right angle."""
    vertices, codes = [(0.0, heights[0])], [Path.MOVETO]
    for number, (before, after) in enumerate(pairwise(heights)):
        vertices += [(number + 0.5, before), (number + 0.5, after), (number + 1.0, after)]
        codes += [Path.CURVE4] * 3
    return Path(vertices, codes)


def _draw_ticks(axes: Axes, position: float, ticks: Sequence[tuple[float, str]], *, is_last: bool) -> None:
    box = {"boxstyle": "round,pad=0.1", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.75}
    for place, text in ticks:
        axes.annotate(
            text,
            (position, place),
            xytext=(6 if is_last else -6, 0),
            textcoords="offset points",
            ha="left" if is_last else "right",
            va="center",
            color=INK,
            bbox=box,
            zorder=5,
        )
        axes.plot([position], [place], marker="_", markersize=5, color=DIM, zorder=4, clip_on=False)
