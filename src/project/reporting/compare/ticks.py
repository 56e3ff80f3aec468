"""Round numbers along an axis. Needs no plotting library."""

import math

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
WITHIN_DECADE = (1, 2, 5)


def linear(low: float, high: float, most: int = 6, *, whole: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, at even distances.

    Args:
        low: finite, below `high`.
        high: finite.
        most: how many there are at most, at least 2.
        whole: whole numbers alone.
    """
    if not low < high:
        return [low]
    rough = max((high - low) / max(1, most - 1), 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in STEPS if _suits(factor * power, rough, whole=whole))
    slack = 1e-9 * (high - low)
    first, last = math.ceil((low - slack) / step), math.floor((high + slack) / step)
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(number * step, digits) + 0.0 for number in range(first, last + 1)]


def _suits(step: float, rough: float, *, whole: bool) -> bool:
    return step >= rough * (1 - 1e-9) and not (whole and step % 1)


def logarithmic(low: float, high: float, most: int = 8) -> list[float]:
    """Powers of ten from `low` to `high`; where they are few, twice and five times these too.

    Args:
        low: positive, below `high`.
        high: finite.
        most: how many there are at most, at least 2.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [factor * 10.0**decade for decade in decades for factor in WITHIN_DECADE]
    fine = [mark for mark in fine if low * (1 - 1e-9) <= mark <= high * (1 + 1e-9)]
    powers = [10.0**decade for decade in decades if low * (1 - 1e-9) <= 10.0**decade <= high * (1 + 1e-9)]
    if len(powers) < 3 and len(fine) <= most:
        return fine
    return powers[:: math.ceil(len(powers) / most)] if powers else [low, high]
