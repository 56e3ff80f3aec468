"""Race of points over their seeds: a point that is worse than the best one gets no more seeds."""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from project.runs.sweep_jobs import Job
from project.runtime.extras import import_extra
from project.runtime.text import plural
from project.sweeps.job_scheduler import JobList

MIN_SEEDS = 3
"""Seeds after which points are compared for the first time; two differences hardly tell their variance."""


class Loss(NamedTuple):
    """Reason why a point cannot win any more."""

    winner: int  # point that is better
    num_seeds: int  # common seeds of both points; 0: a value of the point is NaN or infinite


class SeedRace(JobList):
    """Jobs of points with several seeds: the first seed of all points, then the second one, and so on.

    A point that loses (see `find_losses`) gets no more seeds: its waiting jobs are supplied with the state
    `eliminated`.

    Args:
        jobs: jobs of the sweep.
        confidence: probability that the point with the best true mean is not eliminated.
        larger_is_better: larger values of the metric are better.
        timeout_s: see `JobList`.

    Raises:
        InputError: scipy is not installed.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        confidence: float,
        *,
        larger_is_better: bool,
        timeout_s: float | None = None,
    ) -> None:
        self._points: dict[int, list[Job]] = {}
        for job in jobs:
            self._points.setdefault(job.point, []).append(job)
        rounds = {job.number: place for own in self._points.values() for place, job in enumerate(own)}
        super().__init__(sorted(jobs, key=lambda job: rounds[job.number]), timeout_s=timeout_s)
        self._losses: dict[int, Loss] | None = None  # None: to be determined
        self._confidence = confidence
        self._larger_is_better = larger_is_better
        self._student_cdf = import_extra(
            "scipy.special", "hydra.sweeper.eliminate_confidence", "search"
        ).stdtr

    def next_job(self) -> Job | None:
        job = super().next_job()
        if job is None:
            return None
        if self._losses is None:
            self._losses = self._find_losses()
        if loss := self._losses.get(job.point):
            winner = self._points[loss.winner][0].point_label
            after = f"worse than {winner} after {plural(loss.num_seeds, 'seed')}"
            job.state = "eliminated"
            job.error = after if loss.num_seeds else "a value is NaN or infinite"
        return job

    def finish(self, job: Job) -> None:
        super().finish(job)
        if job.state == "done":
            self._losses = None

    def _find_losses(self) -> dict[int, Loss]:
        values: dict[int, dict[Hashable, float]] = {
            point: {
                job.repetition: job.value for job in jobs if job.state == "done" and job.value is not None
            }
            for point, jobs in self._points.items()
        }
        looks = max(map(len, self._points.values())) - MIN_SEEDS
        return find_losses(
            values,
            significance=(1 - self._confidence) / max(1, (len(values) - 1) * looks),
            larger_is_better=self._larger_is_better,
            student_cdf=self._student_cdf,
        )


def find_losses(
    values: Mapping[int, Mapping[Hashable, float]],
    *,
    significance: float,
    larger_is_better: bool,
    student_cdf: Callable[[float, float], float],
) -> dict[int, Loss]:
    """Return the points that are worse than the one with the best mean.

    The differences of both points over their common seeds are tested by Student's one-sided paired t-test, as
    in races of Maron and Moore (Hoeffding Races, NIPS 1993) and Birattari et al. (A Racing Algorithm for
    Configuring Metaheuristics, GECCO 2002), here with a correction for repeated tests (Bonferroni). A point
    with a value that is NaN or infinite has no mean, and loses against any other.

    Args:
        values: values by seed, for each point.
        significance: largest probability of an error in one test.
        larger_is_better: larger values are better.
        student_cdf: distribution function of Student's t, of degrees of freedom and value.
    """
    sign = 1.0 if larger_is_better else -1.0
    means = {
        point: sign * float(np.mean(list(own.values())))
        for point, own in values.items()
        if len(own) >= MIN_SEEDS and _are_finite(own.values())
    }
    if not means:
        return {}
    winner = max(means, key=means.__getitem__)
    losses = {}
    for point, own in values.items():
        if not _are_finite(own.values()):
            losses[point] = Loss(winner, 0)
            continue
        common = [seed for seed in own if seed in values[winner]]
        if point == winner or len(common) < MIN_SEEDS:
            continue
        differences = sign * np.array([values[winner][seed] - own[seed] for seed in common])
        deviation = differences.std(ddof=1)
        # Equal differences occur by chance where few images are counted, and tell nothing about the variance.
        if deviation > 0:
            statistic = differences.mean() / deviation * math.sqrt(len(common))
            if student_cdf(len(common) - 1, -statistic) < significance:
                losses[point] = Loss(winner, len(common))
    return losses


def _are_finite(values: Iterable[float]) -> bool:
    return all(map(math.isfinite, values))
