"""Bar charts: counts of categories by group, and histograms."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from project.figures.charts import COLORS
from project.runtime.text import shorten

MAX_NAME = 24
"""Characters of a category."""


def draw_stacked_bars(
    axes: Axes, names: Sequence[str], groups: Sequence[Sequence[float]], *, x_label: str
) -> None:
    """Draw a horizontal bar a category, first on top, with a segment a group.

    Args:
        axes: axes to draw in.
        names: names of the categories.
        groups: lengths of the segments of each group, one for each category.
        x_label: label of the x axis.
    """
    places = np.arange(len(names))
    ends = np.zeros(len(names))
    for number, lengths in enumerate(groups):
        values = np.asarray(lengths, float)
        axes.barh(places, values, left=ends, height=0.72, color=COLORS[number % len(COLORS)])
        ends += values
    axes.set_yticks(places, [shorten(name, MAX_NAME) for name in names])
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.grid(axis="x", linewidth=0.8)
    axes.tick_params(axis="both", length=0)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.margins(y=0.01)
    axes.set_xlabel(x_label)


def draw_histogram(axes: Axes, values: Sequence[float], *, x_label: str, color: int = 0) -> None:
    """Draw the number of values in each of at most 40 equal intervals."""
    counts, edges = np.histogram(np.asarray(values, float), bins=min(40, max(5, round(len(values) ** 0.5))))
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=COLORS[color % len(COLORS)])
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="y", linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.01)
    axes.set_xlabel(x_label)
