"""Search space, parsed from Hydra's sweep grammar."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Any

import numpy as np
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import Study, create_study
from optuna.trial import Trial, TrialState, create_trial

from project.errors import InputError
from project.runs.optuna_studies import make_sampler
from project.runs.sweep_jobs import Job
from project.runtime.text import did_you_mean
from project.sweeps.sweepers.conditions import Conditions
from project.sweeps.sweepers.grid import Point, count_values, parse_sweep

LOG = "log"
REPEATS = "repeats"
"""Trial attribute: number of the trial with equal values whose result the trial copies."""
MAX_POINTS = 10_000
"""Size up to which a space counts as finite."""


def parse_space(
    overrides: Sequence[str],
    loader: ConfigLoader,
    params: Mapping[str, Any] = MappingProxyType({}),
    sweeper: str = "optuna",
) -> tuple[list[str], dict[str, BaseDistribution]]:
    """Separate the overrides that all trials share from the search space.

    `interval(a,b)` is continuous and `int(interval(a,b))` integer; `tag(log,…)` makes either logarithmic.
    `range(a,b,step)` is discrete; `a,b,c`, `choice(…)` and `glob(…)` are categorical.

    Args:
        overrides: overrides of the command line.
        loader: Hydra's loader of configurations.
        params: additional keys of the space, which `overrides` replace [none].
        sweeper: name of the sweeper in messages [optuna].

    Returns:
        The shared overrides, and a distribution for each swept key.

    Raises:
        InputError: an empty or impossible interval, or no space at all.
    """
    given = {text.partition("=")[0] for text in overrides}
    added = [f"{key}={value}" for key, value in params.items() if key not in given]
    constant, swept = parse_sweep([*added, *overrides], loader)
    space = {str(override.get_key_element()): _distribution(override) for override in swept}
    if not space:
        raise InputError(
            f"hydra/sweeper={sweeper}: nothing to search; give a space, such as "
            "'optim.lr=tag(log,interval(1e-4,1))'"
        )
    return constant, space


@dataclass(frozen=True)
class SearchSpace:
    """Points from which a search chooses.

    Args:
        constant: overrides that all points share.
        distributions: distribution of each searched key.
        conditions: conditions under which keys apply.
    """

    constant: list[str]
    distributions: dict[str, BaseDistribution]
    conditions: Conditions

    @classmethod
    def parse(
        cls,
        overrides: Sequence[str],
        loader: ConfigLoader,
        params: Mapping[str, Any] = MappingProxyType({}),
        only_if: Mapping[str, str] = MappingProxyType({}),
        sweeper: str = "optuna",
    ) -> "SearchSpace":
        """Parse overrides (see `parse_space`) and conditions (see `Conditions`)."""
        constant, distributions = parse_space(overrides, loader, params, sweeper)
        return cls(constant, distributions, Conditions(only_if, constant, distributions))

    def ask(self, study: Study) -> Trial:
        """Ask a sampler for the values of a trial, of those keys only that apply to it."""
        trial = study.ask()
        self.choose(lambda key, distribution: suggest(trial, key, distribution))
        return trial

    def choose(self, choose_value: Callable[[str, BaseDistribution], Any]) -> dict[str, Any]:
        """Return the values of a point, of those keys only that apply to it.

        Args:
            choose_value: function that returns a value for a key and its distribution.
        """
        keys = {key.lstrip("+"): key for key in self.distributions}
        values: dict[str, Any] = {}
        texts: dict[str, str] = {}
        for name in self.conditions.order:
            if self.conditions.holds(name, texts):
                key = keys[name]
                values[key] = choose_value(key, self.distributions[key])
                texts[name] = str(values[key])
        return values

    def point(self, values: Mapping[str, Any]) -> Point:
        """Return the point with the values of a trial."""
        return Point(self.constant, trial_overrides(values))

    def find_points(self) -> list[dict[str, Any]] | None:
        """Return all points of a finite space, without keys that do not apply; None above `MAX_POINTS`."""
        axes = [_values(distribution) for distribution in self.distributions.values()]
        if math.prod(map(len, axes)) > MAX_POINTS or not all(axes):
            return None
        points = {}
        for values in product(*axes):
            point = dict(zip(self.distributions, values, strict=True))
            kept = tuple(self.conditions.keep(trial_overrides(point)))
            names = {text.partition("=")[0] for text in kept}
            points[kept] = {key: value for key, value in point.items() if key in names}
        return list(points.values())

    def corner_jobs(self) -> list[Job]:
        """Return a job for each corner of the space, whose configuration is checked but which never runs."""
        return [
            Job(number, [*self.constant, *self.conditions.keep(trial_overrides(values))], [], "probe")
            for number, values in enumerate(find_corners(self.distributions))
        ]


def random_study(seed: int | None, *path: int) -> Study:
    """Return a study that samples at random.

    Args:
        seed: seed of a search (None: different samples each time).
        path: numbers of the part of the search, whose samples depend only on them and the seed.
    """
    own = None if seed is None else int(np.random.SeedSequence((seed, *path)).generate_state(1)[0])
    return create_study(sampler=make_sampler("random", {}, own))


def suggest(trial: Trial, key: str, distribution: BaseDistribution) -> Any:
    """Return the value that a sampler suggests for a key of a trial."""
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(key, distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    call: Any = trial.suggest_int if isinstance(distribution, IntDistribution) else trial.suggest_float
    return call(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def _values(distribution: BaseDistribution) -> Sequence[Any]:
    """Return the values of a distribution; none if they are more than `MAX_POINTS`, or not countable."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    if step is None or (high - low) / step >= MAX_POINTS:
        return ()
    return [low + number * step for number in range(round((high - low) / step) + 1)]


def trial_overrides(values: Mapping[str, Any]) -> list[str]:
    """Return a trial's values as overrides."""
    return [f"{key}={value}" for key, value in values.items()]


def parse_point(
    overrides: Sequence[str], space: Mapping[str, BaseDistribution], source: str
) -> dict[str, Any]:
    """Return the values of a point of a search space; it may leave out parameters, which are then sampled.

    Args:
        overrides: the point's overrides.
        space: distribution of each parameter.
        source: key and value that name the overrides, for messages.

    Raises:
        InputError: a key is not a parameter, or a value is outside of its distribution.
    """
    keys = {key.lstrip("+"): key for key in space}
    values: dict[str, Any] = {}
    for text in overrides:
        name, _, value = text.partition("=")
        if (key := keys.get(name.lstrip("+"))) is None:
            raise InputError(
                f"{source}: {text}: the search has no such parameter; {did_you_mean(name, keys)}"
            )
        kinds = {FloatDistribution: float, IntDistribution: int}
        try:
            values[key] = kinds.get(type(space[key]), str)(value)
            create_trial(state=TrialState.RUNNING, params={key: values[key]}, distributions={key: space[key]})
        except ValueError as error:
            raise InputError(f"{source}: {text}: outside of the search space, {space[key]}") from error
    return values


def find_corners(space: Mapping[str, BaseDistribution]) -> list[dict[str, Any]]:
    """Return points that cover every category and both ends of every interval, to check before the search."""
    ends = [list_ends(distribution) for distribution in space.values()]
    number = max(map(len, ends))
    return [
        {key: values[index % len(values)] for key, values in zip(space, ends, strict=True)}
        for index in range(number)
    ]


def list_ends(distribution: BaseDistribution) -> list[Any]:
    """Return all categories, or both ends of an interval."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return [distribution.low, distribution.high]


def _distribution(override: Override) -> BaseDistribution:
    value = override.value()
    tags: set[str] = getattr(value, "tags", set())
    has_interval = isinstance(value, IntervalSweep | RangeSweep)
    if tags - ({LOG} if has_interval else set()):
        raise InputError(
            f"{override.input_line}: the only tag is {LOG}, for an interval or a range; leave others out"
        )
    try:
        if isinstance(value, IntervalSweep):
            return _numbers(value.start, value.end, None, log=LOG in tags)
        if isinstance(value, RangeSweep):
            return _range(value, count_values(override))
        return CategoricalDistribution(list(map(str, override.sweep_string_iterator())))
    except ValueError as error:
        raise InputError(f"{override.input_line}: {error}") from error


def _range(sweep: RangeSweep, number: int) -> BaseDistribution:
    if not number:
        raise ValueError("an empty range; its end is not part of it")
    assert sweep.start is not None
    low, high = sorted((sweep.start, sweep.start + (number - 1) * sweep.step))
    return _numbers(low, high, abs(sweep.step), log=LOG in sweep.tags)


def _numbers(low: float | None, high: float | None, step: float | None, *, log: bool) -> BaseDistribution:
    assert low is not None
    assert high is not None
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log, step=1 if step is None else int(step))
    return FloatDistribution(float(low), float(high), log=log, step=None if step is None else float(step))
