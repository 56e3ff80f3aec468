"""Decisions of population-based training (PBT), without processes and files.

Jaderberg et al. 2017, "Population Based Training of Neural Networks", arXiv 1711.09846: exploit by truncation
selection, and explore by perturbation (sec. 4.1.1).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import Study

from project.sweeps.sweepers.search_space import SearchSpace, suggest

FACTORS = (0.8, 1.2)
"""Factors of a perturbed number."""
MAX_DRAWS = 100
"""Draws of new values until they differ from those of the source."""


class Member(NamedTuple):
    """State of a member of the population at the end of a generation.

    Args:
        value: value of the monitored metric, larger is better; -inf for a failure.
        is_paused: true if the member continues; false if it stopped early or failed.
    """

    value: float
    is_paused: bool = True


class Selection(NamedTuple):
    """Indices of the members that are replaced, and of those whose copies may replace them, best first."""

    replaced: list[int]
    sources: list[int]


def select_members(members: Sequence[Member], quantile_fraction: float) -> Selection:
    """Select members by truncation: copies of the best replace the worst.

    Of equal members, the earlier one is better. All failed and diverged members are replaced. Members that
    stopped early have nothing left to train, and are no sources.

    Args:
        members: members of the population.
        quantile_fraction: fraction of the population at each end, at least one member.
    """
    order = sorted(range(len(members)), key=lambda index: -members[index].value)
    number = max(1, int(len(members) * quantile_fraction))
    finite = [index for index in order if math.isfinite(members[index].value)]
    sources = [index for index in finite if members[index].is_paused][:number]
    worst = {*order[-number:], *order[len(finite) :]} - {*sources}
    return Selection(sorted(worst) if sources else [], sources)


def explore(
    space: SearchSpace,
    values: Mapping[str, Any],
    resample_prob: float,
    generator: np.random.Generator,
    study: Study,
) -> dict[str, Any]:
    """Return new values near those of a source; at least one differs, if the space has another point.

    Args:
        space: search space.
        values: values of the source.
        resample_prob: probability of sampling the value of a key from its whole range.
        generator: random generator of the perturbations.
        study: study that samples at random.
    """
    for _ in range(MAX_DRAWS):
        trial = study.ask()

        def choose(key: str, distribution: BaseDistribution, trial: Any = trial) -> Any:
            sampled = suggest(trial, key, distribution)
            if key not in values or generator.random() < resample_prob:
                return sampled
            perturbed = perturb(values[key], distribution, generator)
            return sampled if perturbed is None else perturbed

        if (found := space.choose(choose)) != values:
            break
    return found


def perturb(value: Any, distribution: BaseDistribution, generator: np.random.Generator) -> Any:
    """Return a value near another one.

    A number is multiplied by one of `FACTORS`, clipped to its range and rounded to its step, by at least one
    step. A choice stays, or becomes one of its neighbours in the order of the choices.

    Returns:
        The value; None if a number cannot change by a factor, as 0.
    """
    if isinstance(distribution, CategoricalDistribution):
        index = distribution.choices.index(value)
        near = distribution.choices[max(0, index - 1) : index + 2]
        return near[generator.integers(len(near))]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    near = tuple(dict.fromkeys(_scale(value, factor, distribution) for factor in FACTORS))
    changed = [number for number in near if number != value]
    return changed[generator.integers(len(changed))] if changed else None


def _scale(value: float, factor: float, distribution: FloatDistribution | IntDistribution) -> float:
    low, high, step = distribution.low, distribution.high, distribution.step
    scaled = value * factor
    if step is not None and scaled != value:
        direction = math.copysign(1, scaled - value)
        moved = max(1, round(abs(scaled - value) / step))
        scaled = low + (round((value - low) / step) + int(direction * moved)) * step
    return min(max(scaled, low), high)
