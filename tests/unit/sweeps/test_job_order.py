"""Tests of the order in which jobs start."""

from collections.abc import Mapping
from typing import Any

import pytest
from omegaconf import OmegaConf

from project.errors import InputError
from project.runs.sweep_jobs import Job
from project.sweeps.job_order import AS_WRITTEN, JobOrder, JobQueue

SECONDS = {"mlp": 1.0, "cnn": 50.0, "vit": 200.0}


def make_jobs() -> list[Job]:
    return [
        Job(3 * place + seed, [], [f"model={model}", f"optim.lr={lr}", f"seed={seed}"], "")
        for place, (model, lr) in enumerate([(model, lr) for model in SECONDS for lr in (0.1, 0.2)])
        for seed in range(3)
    ]


def duration_s(job: Job) -> float:
    return SECONDS[job.settings["model"]] * (1 + 10 * float(job.settings["optim.lr"]))


def started(jobs: list[Job], order: JobOrder, stop: int = 100) -> list[Job]:
    """Return the jobs in the order in which they start, one at a time."""
    queue, found = JobQueue(jobs, order), []
    while len(found) < stop and (job := queue.pop()) is not None:
        job.started, job.attempts, job.state, job.duration_s = "now", 1, "done", duration_s(job)
        queue.record([job])
        found.append(job)
    return found


def makespan_s(jobs: list[Job], devices: int) -> float:
    """Return the time after which the last job ends, if each starts on the device that is free first."""
    ends = [0.0] * devices
    for job in jobs:
        ends.sort()
        ends[0] += duration_s(job)
    return max(ends)


def test_jobs_start_as_written() -> None:
    assert started(jobs := make_jobs(), AS_WRITTEN) == jobs


def test_long_jobs_start_first_once_each_option_was_measured() -> None:
    order = JobOrder(longest_first=True)
    found = started(make_jobs(), order)
    assert [job.settings["model"] for job in found[:3]] == ["mlp", "cnn", "vit"]
    models = [job.settings["model"] for job in found[3:]]
    assert models == 5 * ["vit"] + 5 * ["cnn"] + 5 * ["mlp"]
    assert makespan_s(found, 4) < makespan_s(make_jobs(), 4)
    jobs = make_jobs()
    first = started(jobs, order, stop=7)
    assert [job.number for job in [*first, *started(jobs, order)]] == [job.number for job in found]  # resumed


@pytest.mark.parametrize(
    ("priority", "expected"),
    [
        ({"model": "cnn"}, ["cnn", "mlp", "vit"]),
        ({"model": ["vit", "cnn"]}, ["vit", "cnn", "mlp"]),
        ({"optim.lr": 2e-1}, ["mlp", "cnn", "vit"]),
    ],
)
def test_priority_precedes_the_order_of_the_jobs(priority: Mapping[str, Any], expected: list[str]) -> None:
    found = started(make_jobs(), JobOrder(priority=OmegaConf.create(priority)))
    assert list(dict.fromkeys(job.settings["model"] for job in found)) == expected
    if "optim.lr" in priority:
        assert [job.settings["optim.lr"] for job in found] == 9 * ["0.2"] + 9 * ["0.1"]


@pytest.mark.parametrize(
    ("priority", "message"),
    [
        (
            {"model": "cmm"},
            r"^hydra\.sweeper\.priority\.model=cmm: no job has this value; choose from mlp, cnn, vit",
        ),
        (
            {"modell": "cnn"},
            r"^hydra\.sweeper\.priority\.modell=cnn: the jobs do not differ in this key; .*model",
        ),
    ],
)
def test_a_priority_that_no_job_has_is_refused(priority: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        JobQueue(make_jobs(), JobOrder(priority=priority))
