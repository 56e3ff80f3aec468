"""Tests of races of points over seeds."""

import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats
from scipy.special import stdtr

from project.runs.sweep_jobs import Job
from project.sweeps.sweepers.seed_race import Loss, SeedRace, find_losses


def make_jobs(points: int, seeds: int) -> list[Job]:
    return [
        Job(seeds * point + seed, [], [f"optim.lr={point}", f"seed={seed}"], "", point=point)
        for point in range(points)
        for seed in range(seeds)
    ]


def race(values: np.ndarray, confidence: float = 0.95, jobs: list[Job] | None = None) -> list[Job]:
    """Run a race over values (points, seeds), of which larger ones are better; return the jobs."""
    points, seeds = values.shape
    jobs = make_jobs(points, seeds) if jobs is None else jobs
    source = SeedRace(jobs, confidence, larger_is_better=True)
    while (job := source.next_job()) is not None:
        if job.state != "eliminated":
            job.state, job.value = "done", float(values[divmod(job.number, seeds)])
        source.finish(job)
    return jobs


def test_losses_are_those_of_students_paired_test() -> None:
    draws = np.random.default_rng(0)
    for _ in range(200):
        best, other = draws.normal([[1.5], [0.0]], 1.0, (2, 6))
        if best.mean() < other.mean():
            continue
        values = {0: dict(enumerate(best.tolist())), 1: dict(enumerate(other.tolist()))}
        expected = stats.ttest_rel(best, other, alternative="greater").pvalue < 0.05
        for sign in (1, -1):
            signed = {point: {seed: sign * x for seed, x in own.items()} for point, own in values.items()}
            found = find_losses(signed, significance=0.05, larger_is_better=sign == 1, student_cdf=stdtr)
            assert found == ({1: Loss(0, 6)} if expected else {})


def test_equal_differences_and_few_seeds_decide_nothing() -> None:
    for seeds, step in ((5, 0.0), (2, 0.01)):
        values = {0: {seed: 0.9 + step * seed for seed in range(seeds)}, 1: dict.fromkeys(range(seeds), 0.5)}
        assert find_losses(values, significance=0.05, larger_is_better=True, student_cdf=stdtr) == {}


def test_the_best_point_is_eliminated_as_rarely_as_promised() -> None:
    draws = np.random.default_rng(1)
    lost, repeats = 0, 200
    for _ in range(repeats):
        values = draws.normal(0.0, 1.0, (5, 6))  # all means are equal, the worst case
        jobs = race(values, confidence=0.9)
        lost += any(job.state == "eliminated" for job in jobs if job.point == 0)
    assert lost / repeats < 0.1 + 3 * math.sqrt(0.09 / repeats)


def test_bad_points_get_few_seeds_and_the_best_one_all() -> None:
    draws = np.random.default_rng(2)
    values = draws.normal(0.0, 0.003, (8, 10)) + np.array([0.95, 0.949, *np.linspace(0.1, 0.9, 6)])[:, None]
    values[3, 1] = math.nan
    jobs = race(values)
    done = Counter(job.point for job in jobs if job.state == "done")
    assert done[0] == done[1] == 10
    assert all(3 <= done[point] <= 5 for point in (2, 4, 5, 6, 7))
    assert done[3] == 2  # by then, another point has three values
    reasons = {job.point: job.error for job in jobs if job.state == "eliminated"}
    assert reasons[3] == "a value is NaN or infinite"
    assert reasons[2] == f"worse than lr=0 after {done[2]} seeds"


@pytest.mark.parametrize("stop", [0, 7, 20, 33])
def test_a_resumed_race_keeps_its_decisions(stop: int) -> None:
    draws = np.random.default_rng(3)
    values = draws.normal(0.0, 0.01, (5, 8)) + np.linspace(0.5, 0.9, 5)[:, None]
    straight = race(values)
    jobs = make_jobs(5, 8)
    source = SeedRace(jobs, 0.95, larger_is_better=True)
    for _ in range(stop):
        if (job := source.next_job()) is not None and job.state != "eliminated":
            job.state, job.value = "done", float(values[divmod(job.number, 8)])
            source.finish(job)
    assert race(values, jobs=jobs) == straight
