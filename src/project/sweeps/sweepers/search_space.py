"""The space that a search goes through, in Hydra's own grammar."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from project.errors import InputError
from project.sweeps.sweepers.points import number_of_values, parse_sweep

LOG = "log"


def space_of(overrides: Sequence[str], loader: ConfigLoader) -> tuple[list[str], dict[str, BaseDistribution]]:
    """Tell what is searched from what is given.

    `interval(a,b)` is continuous, `int(interval(a,b))` whole, `tag(log,…)` of either logarithmic,
    `range(a,b,step)` has steps, `a,b,c`, `choice(…)` and `glob(…)` are categories.

    Args:
        overrides: of the command line and the sweeper's `params`.
        loader: Hydra's, for `glob`.

    Returns:
        The overrides that all trials share, and a distribution by key.

    Raises:
        InputError: an empty or impossible interval, or nothing to search.
    """
    constant, swept = parse_sweep(overrides, loader)
    space = {str(override.get_key_element()): _distribution(override) for override in swept}
    if not space:
        raise InputError(
            "hydra/sweeper=optuna: nothing to search; give a space, such as "
            "'optim.lr=tag(log,interval(1e-4,1))'"
        )
    return constant, space


def overrides_of(values: Mapping[str, Any]) -> list[str]:
    """A point of the space as overrides."""
    return [f"{key}={value}" for key, value in values.items()]


def corners(space: Mapping[str, BaseDistribution]) -> list[dict[str, Any]]:
    """Points in which every category and both ends of every interval occur: to be checked beforehand."""
    ends = [_ends(distribution) for distribution in space.values()]
    number = max(len(values) for values in ends)
    return [
        {key: values[index % len(values)] for key, values in zip(space, ends, strict=True)}
        for index in range(number)
    ]


def _ends(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return [distribution.low, distribution.high]


def _distribution(override: Override) -> BaseDistribution:
    value = override.value()
    tags: set[str] = getattr(value, "tags", set())
    logarithmic = isinstance(value, IntervalSweep | RangeSweep)
    if tags - ({LOG} if logarithmic else set()):
        raise InputError(
            f"{override.input_line}: the only tag is {LOG}, of an interval or a range; leave others out"
        )
    try:
        if isinstance(value, IntervalSweep):
            return _interval(value)
        if isinstance(value, RangeSweep):
            return _range(value, number_of_values(override))
        return CategoricalDistribution([str(one) for one in override.sweep_string_iterator()])
    except ValueError as error:
        raise InputError(f"{override.input_line}: {error}") from error


def _interval(sweep: IntervalSweep) -> BaseDistribution:
    low, high, log = sweep.start, sweep.end, LOG in sweep.tags
    assert low is not None
    assert high is not None
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _range(sweep: RangeSweep, number: int) -> BaseDistribution:
    if not number:
        raise ValueError("an empty range; its end is not part of it")
    start, step, log = sweep.start, sweep.step, LOG in sweep.tags
    assert start is not None
    low, high = sorted((start, start + (number - 1) * step))
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, step=abs(int(step)), log=log)
    return FloatDistribution(float(low), float(high), step=abs(float(step)), log=log)
