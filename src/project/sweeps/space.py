"""The space that a search goes through, in Hydra's own grammar."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from project.errors import InputError


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
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    constant = [override.input_line or "" for override in parsed if not override.is_sweep_override()]
    space = {
        str(override.get_key_element()): _distribution(override)
        for override in parsed
        if override.is_sweep_override()
    }
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
    try:
        if isinstance(value, IntervalSweep):
            return _interval(value)
        if isinstance(value, RangeSweep):
            return _range(value)
        return CategoricalDistribution([str(one) for one in override.sweep_string_iterator()])
    except ValueError as error:
        raise InputError(f"{override.input_line}: {error}") from error


def _interval(sweep: IntervalSweep) -> BaseDistribution:
    low, high, log = sweep.start, sweep.end, "log" in sweep.tags
    assert low is not None
    assert high is not None
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _range(sweep: RangeSweep) -> BaseDistribution:
    values = list(sweep.range())
    if not values:
        raise ValueError("an empty range; its end is not part of it")
    if all(isinstance(value, int) for value in values):
        return IntDistribution(int(values[0]), int(values[-1]), step=int(sweep.step))
    return FloatDistribution(float(values[0]), float(values[-1]), step=float(sweep.step))
