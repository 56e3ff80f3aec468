"""From values to places in a picture."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from project.reporting.compare import ticks as round_numbers

SPAN_FOR_LOG = 50
"""An axis that may be logarithmic is, if its largest value is this many times its smallest."""
LARGEST = 1e100
"""What is beyond lies at the edge."""
MARGIN = 0.04
"""Of an axis' length: kept free beyond the outermost values."""


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Args:
        low: value at its beginning, positive if `log`.
        high: at its end; larger.
        start: place of its beginning, in units of the picture.
        end: of its end.
        log: whether it is logarithmic.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies; what lies beyond the axis is moved to its end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def marks(self, most: int, *, whole: bool = False) -> list[tuple[float, str]]:
        """Place and text of its ticks; only whole numbers if that is asked for."""
        if self.log:
            values = round_numbers.logarithmic(self.low, self.high, most)
        else:
            values = round_numbers.linear(self.low, self.high, most, whole=whole)
        return [(self.place(value), short(value)) for value in values]


def spanning(values: Iterable[float], start: float, end: float, *, may_be_log: bool = False) -> Axis:
    """An axis on which all values find room, with a margin.

    Args:
        values: those that are no finite numbers count for nothing.
        start: place of its beginning.
        end: of its end.
        may_be_log: make it logarithmic if the values are positive and span much.
    """
    known = [min(max(value, -LARGEST), LARGEST) for value in values if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    if may_be_log and low > 1 / LARGEST and high / low >= SPAN_FOR_LOG:
        room = (high / low) ** MARGIN
        return Axis(low / room, high * room, start, end, log=True)
    room = MARGIN * (high - low) if low < high else abs(low) * 0.1
    if low + room == low:  # too little to be told apart
        room = abs(low) * 1e-6 or 0.5
    return Axis(low - room, high + room, start, end)


def short(value: float) -> str:
    """A number in few characters, such as 0.05, 20k, 1.5M or 1e-06."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if 10 * size <= abs(value) < 1000 * size or (unit == "M" and size <= abs(value) < 10 * size):
            return f"{value / size:.4g}{unit}"
    return f"{value:.5g}".replace("e-0", "e-").replace("e+0", "e+")


def thinned(xs: Sequence[float], ys: Sequence[float], most: int) -> tuple[list[float], list[float]]:
    """Average neighbours, so that at most `most` points are left; values that are no numbers stay so."""
    if len(xs) <= most:
        return list(xs), list(ys)
    bounds = [round(number * len(xs) / most) for number in range(most + 1)]
    pairs = list(pairwise(bounds))
    return (
        [math.fsum(xs[begin:end]) / (end - begin) for begin, end in pairs],
        [sum(ys[begin:end]) / (end - begin) for begin, end in pairs],
    )
