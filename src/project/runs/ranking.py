"""Ranking of points, shared by all tables and all commands that take a sweep.

A point is a configuration without seed and fold. Its value is the mean over its repetitions; runs with the
same seed and fold are one repetition.
"""

import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from project.runs.intervals import overlap, wilson

REPETITIONS = ("seed", "data.fold")
"""Keys whose values distinguish the repetitions of a point."""

P = TypeVar("P")


@dataclass(frozen=True)
class Score:
    """Values of a metric, one per repetition, and the planned number of repetitions."""

    values: tuple[float, ...]
    planned: int

    @property
    def mean(self) -> float:
        """Mean over the repetitions; NaN without any, or if one is NaN."""
        return _mean(self.values)

    @property
    def std(self) -> float:
        """Sample standard deviation (over n - 1); NaN for fewer than two repetitions."""
        finite = len(self.values) > 1 and all(map(math.isfinite, self.values))
        return statistics.stdev(self.values) if finite else math.nan

    @property
    def count(self) -> str:
        """Number of repetitions with a value: `3`, or `1 of 3` if some are missing."""
        n = len(self.values)
        return f"{n} of {self.planned}" if n < self.planned else str(n)

    def __str__(self) -> str:
        form = ".4f" if 0.01 <= abs(self.mean) < 1000 else ".4g"
        spread = "" if math.isnan(self.std) else f" ± {self.std:{form}}"
        return f"{self.mean:{form}}{spread} (n = {self.count})"


def score(results: Iterable[tuple[Hashable, float | None]], planned: int = 0) -> Score:
    """Return the score of pairs (repetition, value); the value is None for a run without the metric."""
    values: dict[Hashable, list[float]] = {}
    for repetition, value in results:
        values.setdefault(repetition, []).extend([] if value is None else [value])
    return Score(tuple(_mean(same) for same in values.values() if same), max(planned, len(values)))


def rank(points: Iterable[P], score_of: Callable[[P], Score], *, larger_is_better: bool) -> list[P]:
    """Sort points, the best mean first.

    A point with missing repetitions and fewer values than another point comes after all complete points, so
    that one lucky seed of three does not win. Infinite means come next, then NaN and points without a value.
    """
    scored = [(point, score_of(point)) for point in points]
    most = max((len(score.values) for _, score in scored), default=0)

    def merit(score: Score) -> tuple[bool, bool, bool, float]:
        mean, n = score.mean, len(score.values)
        value = 0.0 if math.isnan(mean) else -mean if larger_is_better else mean
        return math.isnan(mean), math.isinf(mean), n < min(most, score.planned), value

    return [point for point, _ in sorted(scored, key=lambda pair: merit(pair[1]))]


def find_ties(scores: Sequence[Score], *, larger_is_better: bool, images: float = math.nan) -> list[int]:
    """Return the indices of the points that tie with the best one, which is not among them.

    A point ties if its mean equals that of the best; else, with several repetitions of the best, if its mean
    is within one standard error, std / √n (Breiman et al., Classification and Regression Trees, 1984, sec.
    3.4.3); with one repetition, if the 95 % intervals of both accuracies overlap. Other metrics of single
    runs have no known error.

    Args:
        scores: scores of all points, best first.
        larger_is_better: larger values of the metric are better.
        images: number of images of an accuracy [NaN: another metric].
    """
    best, others = scores[0], scores[1:]
    n, mean = len(best.values), best.mean
    error = best.std / math.sqrt(n) if n > 1 else 0.0
    has_interval = n == 1 and images > 0 and 0 <= mean <= 1

    def is_tie(other: Score) -> bool:
        if has_interval and 0 <= other.mean <= 1:
            return overlap(wilson(mean, images), wilson(other.mean, images))
        return other.mean >= mean - error if larger_is_better else other.mean <= mean + error

    return [place for place, other in enumerate(others, start=1) if is_tie(other)]


def count_ties(scores: Sequence[Score], *, larger_is_better: bool, images: float = math.nan) -> int:
    """Count the points that tie with the best one; arguments as in `find_ties`."""
    return len(find_ties(scores, larger_is_better=larger_is_better, images=images))


def tie_note(ties: int) -> str:
    """Return a note on the number of ties with the best point; empty without ties."""
    if not ties:
        return ""
    points = "1 more point ties" if ties == 1 else f"{ties} more points tie"
    return f"{points} with the best: equal, or within its error"


def _mean(values: Sequence[float]) -> float:
    undefined = not values or (math.inf in values and -math.inf in values)
    return math.nan if undefined else math.fsum(values) / len(values)
