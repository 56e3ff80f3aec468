"""Tests of `hydra/sweeper=pbt` by its commands, with jobs of two ranks."""

import csv
import math
from pathlib import Path

import pytest
from forked_attempts import difference, state_of
from test_asha import TRIAL as ASHA_TRIAL
from test_sweep_runs import begin, jobs_of, only_sweep, run, wait_until

from project.runs.sweep_folder import SweepFolder
from project.runs.sweep_jobs import Job
from project.sweeps.sweepers.pausing import values_of
from project.sweeps.sweepers.pbt_report import lineage_of

EPOCHS, STEPS = 3, 3
TRIAL = [word for word in ASHA_TRIAL if not word.startswith("trainer.max_epochs")]
SEARCH = [
    *("-m", *TRIAL, "trainer.max_epochs=3", "hydra/sweeper=pbt", "hydra.sweeper.population_size=2"),
    *("trainer.log_every_n_steps=1", "hydra.sweeper.interval_epochs=1"),
    *("optim.lr=tag(log,interval(1e-4,1))", "optim.momentum=0,0.5,0.9"),
]
"""Two members that are compared after 1 and 2 epochs."""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder of the command with a finished sweep, and the output of the command."""
    folder = tmp_path_factory.mktemp("searched")
    return folder, run(*SEARCH, "hydra.launcher.jobs=2", cwd=folder).stdout


def facts(jobs: list[Job]) -> list[tuple[object, ...]]:
    return [
        (
            *(job.name, job.state, job.parent, job.start_epoch, job.replaced),
            values_of(job),
            job.metrics.get("test/acc"),
        )
        for job in jobs
    ]


def rates(sweep: SweepFolder, job: Job) -> dict[int, float]:
    """Return the learning rate at each logged step."""
    with (sweep.path / job.name / "metrics.csv").open(newline="") as stream:
        return {int(row["step"]): float(row["train/lr"]) for row in csv.DictReader(stream) if row["train/lr"]}


def annealed_rates(jobs: list[Job], job: Job) -> dict[int, float]:
    """Return the learning rates after each step by cosine annealing of those of a job and its ancestors."""
    return {
        step: float(stage.job.settings["optim.lr"]) * 0.5 * (1 + math.cos(math.pi * step / (STEPS * EPOCHS)))
        for stage in lineage_of(jobs, job, 1)
        for step in range(STEPS * (stage.first - 1) + 1, STEPS * stage.last + 1)
    }


def test_copies_of_the_best_member_replace_the_worst(searched: tuple[Path, str]) -> None:
    folder, printed = searched
    sweep, jobs = only_sweep(folder), jobs_of(folder)
    assert [(job.parent is None, job.start_epoch, job.state) for job in jobs[2:]] == [
        *((False, 1, jobs[2].state), (False, 2, "done"))
    ]
    first = [values_of(job)[0] or 0.0 for job in jobs[:2]]
    assert jobs[2].parent == first.index(max(first))
    assert jobs[2].replaced == 1 - jobs[2].parent
    assert "4 jobs: 2 paused, 2 done" in printed
    assert [line for line in printed.splitlines() if line.strip().startswith("evaluate it")]
    for job in jobs:
        status = sweep.run(job.name).read_status()
        assert (status["state"], status["ranks"]) == (job.state, 2)
        assert status["value"] == job.value
        assert f"lr: {job.settings['optim.lr']}" in sweep.run(job.name).config_file.read_text()
        assert rates(sweep, job) == pytest.approx(annealed_rates(jobs, job))
    # Both have trained one epoch since the copy: the checkpoints before are those from which they continued.
    last = jobs[3]
    assert last.parent is not None
    previous = [sweep.path / job.name / "checkpoints" / "previous.ckpt" for job in (last, jobs[last.parent])]
    assert difference(*map(state_of, previous)) == ""
    lasts = [file.with_name("last.ckpt") for file in previous]
    assert difference(*map(state_of, lasts)) != ""


def test_a_killed_search_decides_as_an_undisturbed_one(searched: tuple[Path, str], tmp_path: Path) -> None:
    stop = "+callbacks.fault={_target_:sweep_objectives.Fault,kind:stop,folder:" + f"'{tmp_path}/once'}}"
    with begin(*SEARCH, stop, "hydra.launcher.jobs=1", cwd=tmp_path) as process:
        wait_until(lambda: (tmp_path / "once.failed").exists())  # in the second epoch of a member or a copy
        process.kill()
    assert any(job.state == "running" for job in jobs_of(tmp_path))
    run("resume=last", cwd=tmp_path)
    assert facts(jobs_of(tmp_path)) == facts(jobs_of(searched[0]))


def test_constant_learning_rates_change(tmp_path: Path) -> None:
    trial = [*TRIAL[:4], "trainer.max_epochs=2", "optim=adam", "trainer.accelerator=cpu", "logger=csv"]
    space = ["optim.lr=tag(log,interval(1e-4,1e-2))", "hydra.sweeper.population_size=2"]
    run("-m", *trial, "hydra/sweeper=pbt", "hydra.sweeper.interval_epochs=1", *space, cwd=tmp_path)
    sweep, jobs = only_sweep(tmp_path), jobs_of(tmp_path)
    (job,) = [job for job in jobs if job.parent is not None]
    assert job.parent is not None
    assert rates(sweep, job) == {
        step: float((job if step == max(rates(sweep, job)) else jobs[job.parent]).settings["optim.lr"])
        for step in rates(sweep, job)
    }
    assert job.settings["optim.lr"] != jobs[job.parent].settings["optim.lr"]
