"""Ranking of points, shared by all tables and all commands that take a sweep.

A point is a configuration without seed and fold. Its value is the mean over its repetitions; runs with the
same seed and fold are one repetition.
"""

import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

REPETITIONS = ("seed", "data.fold")
"""Keys whose values distinguish the repetitions of a point."""
Z95 = statistics.NormalDist().inv_cdf(0.975)

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


def count_ties(scores: Sequence[Score], *, larger_is_better: bool, images: float = math.nan) -> int:
    """Count the points within one standard error of the best one's mean.

    Source: Breiman et al., Classification and Regression Trees, 1984, sec. 3.4.3. The standard error is
    std / √n over n repetitions. With one repetition, the interval of an accuracy is Wilson's for a fraction
    of `images`; other metrics have no known error, and 0 is returned.

    Args:
        scores: scores of all points, best first.
        larger_is_better: larger values of the metric are better.
        images: number of images of an accuracy [NaN: another metric].
    """
    best, others = scores[0], scores[1:]
    n, mean = len(best.values), best.mean
    if n > 1:
        error = best.std / math.sqrt(n)
        low, high = mean - error, mean + error
    elif n == 1 and images > 0 and 0 <= mean <= 1:
        low, high = wilson(mean, images, z=1)
    else:
        return 0
    return sum(other.mean >= low if larger_is_better else other.mean <= high for other in others)


def tie_note(ties: int) -> str:
    """Return a note on the number of ties with the best point; empty without ties."""
    if not ties:
        return ""
    points = "1 more point is" if ties == 1 else f"{ties} more points are"
    return f"{points} less than one standard error behind the best"


def wilson(share: float, count: float, z: float = Z95) -> tuple[float, float]:
    """Return the confidence interval of a fraction of `count` independent cases.

    Source: E. B. Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.

    Args:
        share: observed fraction.
        count: number of cases.
        z: half width in standard errors [1.96: a 95 % interval].
    """
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _mean(values: Sequence[float]) -> float:
    undefined = not values or (math.inf in values and -math.inf in values)
    return math.nan if undefined else math.fsum(values) / len(values)
