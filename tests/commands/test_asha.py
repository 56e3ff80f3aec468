"""Tests of `hydra/sweeper=asha` by its commands, with jobs of two ranks."""

import os
import re
from pathlib import Path

import pytest
from forked_attempts import difference, state_of
from test_sweep_runs import begin, jobs_of, only_sweep, run, wait_until

from project.reporting.html.command import write_report
from project.reporting.runs.live import LiveRuns
from project.runs.sweep_jobs import Job
from project.sweeps.sweepers.pausing import values_of

TRIAL = [
    *("model=mlp", "data=synthetic", "data.train_size=200", "data.test_size=40", "scheduler=cosine"),
    *("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_epochs=4", "optim=sgd"),
]
SEARCH = [
    *("-m", *TRIAL, "hydra/sweeper=asha", "hydra.sweeper.n_trials=4", "hydra.sweeper.reduction_factor=2"),
    *("hydra.launcher.jobs=1", "optim.lr=tag(log,interval(1e-4,1))"),
]
"""Trials that are compared after 1, 2 and 4 epochs, one job after the other."""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder of the command with a finished sweep, and the output of the command."""
    folder = tmp_path_factory.mktemp("searched")
    return folder, run(*SEARCH, cwd=folder).stdout


def facts(jobs: list[Job]) -> list[tuple[object, ...]]:
    return [(job.name, job.state, values_of(job), job.metrics.get("test/acc")) for job in jobs]


def epochs_in_log(folder: Path) -> list[str]:
    return re.findall(r"^.*?\b(\d/4) ", (folder / "train.log").read_text(), re.MULTILINE)


def test_trials_are_continued_from_their_checkpoints(searched: tuple[Path, str], tmp_path: Path) -> None:
    folder, printed = searched
    sweep, jobs = only_sweep(folder), jobs_of(folder)
    assert sorted(len(values_of(job)) for job in jobs) == [1, 1, 2, 3]
    for job in jobs:
        epochs = [1, 2, 4][len(values_of(job)) - 1]
        assert epochs_in_log(sweep.run(job.name).path) == [f"{number}/4" for number in range(1, epochs + 1)]
        assert job.attempts == len(values_of(job))
        assert sweep.run(job.name).read_status()["ranks"] == 2
    (best,) = [job for job in jobs if job.state == "done"]
    assert "4 jobs: 3 paused, 1 done" in printed
    assert "rungs: 4 trials after 1 epoch, 2 trials after 2 epochs, 1 trial after 4 epochs" in printed
    run(*TRIAL, *best.varied, cwd=tmp_path)
    (straight,) = tmp_path.glob("outputs/*/*/status.json")
    continued = sweep.run(best.name).path
    for name in ("last.ckpt", "best.ckpt"):
        states = [state_of(place / "checkpoints" / name) for place in (straight.parent, continued)]
        assert difference(*states) == ""
    alone = only_metrics(straight.parent)
    assert only_metrics(continued) == alone
    assert best.metrics["test/acc"] == alone["test/acc"]


def only_metrics(folder: Path) -> dict[str, float]:
    from project.runs.run_folder import RunFolder

    metrics: dict[str, float] = RunFolder(folder).read_status()["metrics"]
    return {name: value for name, value in metrics.items() if not name.startswith("speed/")}


def test_a_killed_search_is_resumed(searched: tuple[Path, str], tmp_path: Path) -> None:
    stop = "+callbacks.fault={_target_:sweep_objectives.Fault,kind:stop,folder:" + f"'{tmp_path}/once'}}"
    with begin(*SEARCH, stop, cwd=tmp_path) as process:
        wait_until(lambda: (tmp_path / "once.failed").exists())  # in the second epoch of a continued trial
        process.kill()
    before = jobs_of(tmp_path)
    assert [len(values_of(job)) for job in before if job.state == "running"] == [1]
    run("resume=last", cwd=tmp_path)
    assert facts(jobs_of(tmp_path)) == facts(jobs_of(searched[0]))


def test_pages_show_paused_trials(searched: tuple[Path, str], tmp_path: Path) -> None:
    sweep = only_sweep(searched[0])
    state = LiveRuns([sweep.path]).state(0, "state=paused")
    assert state["summary"]["states"] == {"paused": 3, "done": 1}
    assert state["summary"]["end"] == "The sweep has ended."
    assert state["summary"]["fraction"] == 1
    assert len(state["match"]) == 3
    assert {row["epoch"] for row in state["rows"] if row["state"] == "paused"} == {1, 2}
    page = write_report(str(sweep.path), tmp_path / "sweep.html", None, tmp_path).read_text()
    assert "paused" in page
    (paused, *_) = [job for job in jobs_of(searched[0]) if job.state == "paused"]
    run_page = write_report(os.fspath(sweep.path / paused.name), tmp_path / "run.html", None, tmp_path)
    assert "The search paused the run" in run_page.read_text()
