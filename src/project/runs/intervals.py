"""Confidence intervals of fractions of cases: accuracies, and precision, recall and F1 of a class."""

import math
import statistics
from collections.abc import Mapping

from project.runs.metric_names import parse

Z95 = statistics.NormalDist().inv_cdf(0.975)
METHOD = "Wilson's score interval (Wilson 1927; Brown, Cai & DasGupta 2001)"
COUNT_TOLERANCE, MIN_CASES = 2.0**-22, 2**12
"""Error of a count that is recovered from a float32 fraction, per case, of at least `MIN_CASES` cases."""
Interval = tuple[float, float]


def wilson(share: float, count: float, z: float = Z95) -> Interval:
    """Return the confidence interval of a fraction of `count` independent cases.

    The interval covers well for few cases and near 0 and 1, and its width is never 0. Sources: E. B. Wilson,
    Probable Inference, the Law of Succession, and Statistical Inference, JASA 22, 1927, p. 209; recommended
    by L. D. Brown, T. T. Cai and A. DasGupta, Interval Estimation for a Binomial Proportion, Statistical
    Science 16(2), 2001, sec. 3.1.

    Args:
        share: observed fraction.
        count: number of cases, at least 1.
        z: half width in standard errors [1.96: a 95 % interval].
    """
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    # The bounds of 0 and 1 are exact; rounding would leave the value outside its interval.
    return (0.0 if share == 0 else low), (1.0 if share == 1 else high)


def f1_interval(hits: float, errors: float, z: float = Z95) -> Interval:
    """Return the confidence interval of the F1 of a class, 2 hits / (2 hits + errors).

    F1 = 2 J / (1 + J) rises with the Jaccard index J = hits / (hits + errors), a fraction of the cases that
    have the class as label or prediction. The bounds are those of `wilson` for J, converted in the same way.

    Args:
        hits: number of true positives.
        errors: number of false positives and false negatives; not 0 if `hits` is.
        z: half width in standard errors [1.96: a 95 % interval].
    """
    count = hits + errors
    low, high = (2 * bound / (1 + bound) for bound in wilson(hits / count, count, z))
    return low, high


def accuracy_interval(metrics: Mapping[str, float], name: str) -> Interval | None:
    """Return Wilson's 95 % interval of an accuracy of a run, such as `test/acc`; None without `num_cases`."""
    count = num_cases(metrics, name)
    return None if math.isnan(count) else wilson(metrics[name], count)


def num_cases(metrics: Mapping[str, float], name: str) -> float:
    """Return the number of independent cases of which a metric is the fraction.

    That is `SPLIT/images` for an accuracy that is a whole number of cases divided by it. An accuracy that is
    averaged otherwise, such as over classes or pixels, has no such interval.

    Args:
        metrics: metrics of a run.
        name: name of the metric.

    Returns:
        The number, at least 1; NaN for other metrics.
    """
    split, kind = parse(name)
    value, count = metrics.get(name, math.nan), metrics.get(f"{split}/images", math.nan)
    if kind not in ("acc", "accuracy") or not (1 <= count < math.inf and 0 <= value <= 1):
        return math.nan
    hits = value * count
    return count if abs(hits - round(hits)) <= COUNT_TOLERANCE * max(count, MIN_CASES) else math.nan


def overlap(one: Interval, other: Interval) -> bool:
    """Return True if two intervals share a value."""
    return one[0] <= other[1] and other[0] <= one[1]
