"""The vertical axes of a picture: which value lies where."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from project.reporting.compare import ticks as round_numbers
from project.runs.hparam_diff import ABSENT
from project.runs.results import natural
from project.runs.table import shorten

MOST_TICKS = 9
SPAN_FOR_LOG = 100  # a positive axis whose largest value is this many times its smallest is logarithmic
APART = 0.06  # at least, of an axis' height: the texts of ticks
FENCED = 8  # so many points, and those that are far worse than the rest end at the edge
BELOW = 0.14  # of an axis' height: kept for what is no number


@dataclass(frozen=True)
class Scale:
    """One vertical axis: where values lie on it.

    Args:
        name: its heading.
        places: of each point's value, from 0 (bottom) to 1 (top).
        ticks: place and text of each.
        crowded: whether many points share a value, and are spread a little to be told apart.
    """

    name: str
    places: list[float]
    ticks: list[tuple[float, str]]
    crowded: bool


def scale(name: str, values: Sequence[Any], texts: Sequence[str], widest: int) -> Scale:
    """Lay the values of a key on an axis: by size if all that are there are numbers, else side by side.

    A few numbers of which some would lie on each other, such as 0, 0.0001 and 0.01, stand side by side too.

    Args:
        name: heading.
        values: of each point; `ABSENT` and None have a place of their own below the numbers.
        texts: the same to be read.
        widest: characters of a tick's text at most.
    """
    missing = [value is None or value is ABSENT for value in values]
    given = [value for value, none in zip(values, missing, strict=True) if not none]
    others = {text for text, none in zip(texts, missing, strict=True) if none}
    numeric = all(type(value) in (int, float) and math.isfinite(value) for value in given)
    if numeric and len(set(given)) > 1 and len(others) <= 1:
        bottom = BELOW if others else 0.0
        ticks, place = number_axis(given, bottom)
        few = len(set(given)) <= MOST_TICKS
        if not few or len(ticks) == len(set(given)):
            places = [0.0 if none else place(value) for value, none in zip(values, missing, strict=True)]
            return Scale(name, places, ticks + [(0.0, text) for text in others], crowded=few)
    # From the bottom up: what is missing; then the larger, the higher, and names from A down to Z.
    pairs = [pair for pair, none in zip(zip(values, texts, strict=True), missing, strict=True) if not none]
    names = [text for _, text in sorted(pairs)] if numeric else sorted({*texts} - others, key=natural)[::-1]
    order = [*sorted(others), *dict.fromkeys(names)]
    at = {text: (number + 0.5) / len(order) for number, text in enumerate(order)}
    ticks = thin([(place, shorten(text, widest)) for text, place in at.items()])
    return Scale(name, [at[text] for text in texts], ticks, crowded=True)


def number_axis(
    values: Sequence[float], bottom: float
) -> tuple[list[tuple[float, str]], Callable[[float], float]]:
    """Make a linear axis, or a logarithmic one for positive values that span `SPAN_FOR_LOG` times.

    Returns:
        Its ticks, at the values themselves where they are few, and the function from value to place.
    """
    low, high = min(values), max(values)
    log = low > 0 and high / low >= SPAN_FOR_LOG * (1 - 1e-9)

    def place(value: float) -> float:
        if log:
            return bottom + (1 - bottom) * math.log(value / low) / math.log(high / low)
        return bottom + (1 - bottom) * (value - low) / (high - low)

    marks: list[float] = sorted(set(values))
    if len(marks) > MOST_TICKS:
        inner = round_numbers.logarithmic(low, high) if log else round_numbers.linear(low, high)
        marks = [low, *inner, high] if len(inner) < 3 else inner
    return thin([(place(mark), f"{mark:.4g}") for mark in marks]), place


def metric_scale(name: str, values: Sequence[float], *, larger_is_better: bool) -> Scale:
    """The axis of the metric; what is no number has a place of its own at the bottom.

    A few that are far worse than the rest, such as runs that diverged, end at the edge, so that the others
    are not pressed into one line; the tick there says `≤` or `≥`.
    """
    given = [value for value in values if math.isfinite(value)]
    others = sorted({f"{value:g}" for value in values if not math.isfinite(value)})
    below = [(0.0, ", ".join(others))] if others else []
    if not given or min(given) == max(given):
        places = [0.5 if math.isfinite(value) else 0.0 for value in values]
        return Scale(name, places, below + [(0.5, f"{value:.6g}") for value in given[:1]], crowded=False)
    low, high = fence(given, larger_is_better=larger_is_better)
    bottom = BELOW if others else 0.0

    def place(value: float) -> float:
        return bottom + (1 - bottom) * (min(max(value, low), high) - low) / (high - low)

    places = [place(value) if math.isfinite(value) else 0.0 for value in values]
    edges = [(place(low), f"≤ {low:.3g}")] * (low > min(given)) + [(1.0, f"≥ {high:.3g}")] * (
        high < max(given)
    )
    marks = [(place(mark), f"{mark:.6g}") for mark in round_numbers.linear(low, high, 7)]
    free = [mark for mark in marks if all(abs(mark[0] - edge) >= APART for edge, _ in edges)]
    return Scale(name, places, [*below, *edges, *free], crowded=False)


def fence(values: Sequence[float], *, larger_is_better: bool) -> tuple[float, float]:
    """The range to be shown: all, but for values three quartile distances worse than the worse quartile."""
    low, high = min(values), max(values)
    if len(values) < FENCED:
        return low, high
    lower, _, upper = statistics.quantiles(values, n=4)
    if upper == lower:
        return low, high
    if larger_is_better:
        return max(low, lower - 3 * (upper - lower)), high
    return low, min(high, upper + 3 * (upper - lower))


def thin(ticks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Leave out ticks whose text would touch the one below."""
    kept: list[tuple[float, str]] = []
    for place, text in sorted(ticks):
        if not kept or place - kept[-1][0] >= APART:
            kept.append((place, text))
    return kept
