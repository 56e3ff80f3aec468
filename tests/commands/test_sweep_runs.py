"""Tests of sweeps by their commands, most of which are forked from this process to save imports."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import forked_command
import pytest
from conftest import ROOT
from forked_attempts import difference, state_of
from forked_command import ForkedCommand
from test_command_line import children_of, train

from project.inference import run_config
from project.inference.load_run import load_run
from project.reporting.html.images import read_event_images
from project.runs.sweep_folder import SweepFolder
from project.runs.sweep_jobs import Job

TINY = [
    *("model=mlp", "data=synthetic", "data.train_size=200", "data.test_size=101"),
    *("trainer.accelerator=cpu", "trainer.max_epochs=3"),
]
FAULT = "+callbacks.fault={_target_:sweep_objectives.Fault,kind:none,folder:'${paths.run}'}"
BOWL = [
    *("model=mlp", "data=synthetic", "data.train_size=60", "data.test_size=20", "loss=mse"),
    *(
        "loss._target_=sweep_objectives.QuadraticLoss",
        "monitor=val/loss",
        "mode=min",
        "trainer.accelerator=cpu",
        "logger=none",
    ),
]


def run_fresh(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")])
    return train(*arguments, cwd=cwd, PYTHONPATH=path, COLUMNS="100")


def begin(*arguments: str, cwd: Path) -> ForkedCommand:
    return ForkedCommand(arguments, cwd, COLUMNS="100")


def run(*arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    return forked_command.run(*arguments, cwd=cwd, code=code, COLUMNS="100")


def only_sweep(cwd: Path) -> SweepFolder:
    (record,) = cwd.glob("outputs/sweep/*/sweep.json")
    return SweepFolder(record.parent)


def states(sweep: SweepFolder) -> list[str]:
    return [job.state for job in sweep.ledger.read().values()]


def jobs_of(cwd: Path) -> list[Job]:
    return list(only_sweep(cwd).ledger.read().values())


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until(condition: object, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_jobs_equal_single_runs_with_one_and_two_ranks(tmp_path: Path) -> None:
    swept = ["model=mlp,lenet", "trainer.devices=1,2"]
    shared = [*TINY[1:], "trainer=ddp", "data.input_shape=[1,32,32]"]
    done = run_fresh("-m", *shared, *swept, "hydra.launcher.jobs=2", cwd=tmp_path)
    sweep = only_sweep(tmp_path)
    jobs = jobs_of(tmp_path)
    assert [job.name for job in jobs] == [
        *("0_mlp_devices1", "1_mlp_devices2", "2_lenet_devices1", "3_lenet_devices2"),
    ]
    for job in jobs:
        status = sweep.run(job.name).read_status()
        assert (job.state, job.attempts, status["state"]) == ("done", 1, "done")
        assert status["ranks"] == int(job.name[-1])
        assert status["metrics"]["test/images"] == 101
        assert (sweep.run(job.name).path / "train.log").read_text().count(" weights)") == 1
    assert re.search(r"^ .*\blenet +2 .*\bdone\b", done.stdout, re.MULTILINE)
    assert "4 jobs: 4 done" in done.stdout
    (tmp_path / "alone").mkdir()
    run(*shared, "model=lenet", "trainer.devices=2", cwd=tmp_path / "alone")
    (status,) = (tmp_path / "alone").glob("outputs/*/*/status.json")
    alone = json.loads(status.read_text())["metrics"]
    assert jobs[3].metrics == pytest.approx(alone, rel=1e-4)


def test_points_that_cannot_win_get_no_more_seeds(tmp_path: Path) -> None:
    command = [
        *(
            "-m",
            "model=mlp",
            "model.widths=[16]",
            "trainer.accelerator=cpu",
            "trainer.max_epochs=2",
            "seeds=6",
        ),
        *("optim.lr=1e-6,0.01", "logger=none", "hydra.sweeper.eliminate_confidence=0.9"),
    ]
    output = run(*command, cwd=tmp_path).stdout
    found = [(job.point, job.state) for job in jobs_of(tmp_path)]
    assert [state for point, state in found if point == 1] == 6 * ["done"]
    lost = [state for point, state in found if point == 0]
    assert lost[:3] == 3 * ["done"]
    assert lost[5] == "eliminated"
    count = lost.count("eliminated")
    assert f"12 jobs: {12 - count} done, {count} eliminated" in output
    assert f"worse than lr=0.01 after {6 - count} seeds" in output
    assert f"{6 - count} of 6" in output
    kept = run("resume=last", cwd=tmp_path).stdout
    assert f"{count} eliminated" in kept
    assert (
        "eliminated" not in run("resume=last", "hydra.sweeper.eliminate_confidence=null", cwd=tmp_path).stdout
    )
    assert states(only_sweep(tmp_path)) == 12 * ["done"]


def test_failed_jobs_are_isolated_and_can_be_retried(tmp_path: Path) -> None:
    swept = ["callbacks.fault.kind=raise,none,kill,memory"]
    failed = run("-m", *TINY, FAULT, *swept, "hydra.launcher.start=fork", cwd=tmp_path, code=1)
    sweep = only_sweep(tmp_path)
    assert states(sweep) == ["failed", "done", "failed", "failed"]
    jobs = jobs_of(tmp_path)
    assert jobs[0].error == "ArithmeticError: this run was made to fail"
    assert jobs[2].error == "killed by SIGKILL, perhaps for lack of memory"
    assert "memory" in str(jobs[3].error)
    assert "ArithmeticError: this run was made to fail" in failed.stdout
    assert f"log: {sweep.path.relative_to(tmp_path)}/{jobs[0].name}/train.log" in failed.stdout
    assert failed.stderr.splitlines()[-1].startswith("error: 3 of 4 jobs failed; resume=outputs/sweep/")
    again = run("resume=last", cwd=tmp_path, code=1)
    assert "started" not in again.stdout
    retried = run("-m", "resume=last", "retry_failed=true", "hydra.launcher.start=fresh", cwd=tmp_path)
    assert states(sweep) == ["done"] * 4
    assert [job.attempts for job in jobs_of(tmp_path)] == [2, 1, 2, 2]
    assert retried.stdout.count("started") == 3
    # Resumed from the first epoch's checkpoint: the second epoch table begins with 2/3.
    log = (sweep.path / jobs_of(tmp_path)[0].name / "train.log").read_text()
    assert log.count(" 1/3 ") == 1
    images = [set(read_event_images(sweep.run(job.name).path)) for job in jobs_of(tmp_path)]
    assert images == [{f"visuals/{tag}" for tag in ("train/images", "test/confusion", "test/mistakes")}] * 4


def test_sweep_copies_all_configuration_folders(tmp_path: Path) -> None:
    own, more = tmp_path / "own", tmp_path / "more"
    for file, text in (
        (
            own / "experiment" / "tiny.yaml",
            "# @package _global_\ndefaults: [override /data: mine]\nseed: 7\n",
        ),
        (own / "data" / "mine.yaml", "defaults: [synthetic]\ntrain_size: 200\ntest_size: 101\n"),
        (
            more / "experiment" / "tiny.yaml",
            "# @package _global_\nnever: read\n",
        ),  # the first folder takes precedence
        (more / "data" / "other.yaml", "defaults: [mine]\ntest_size: 77\n"),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    shared = [TINY[0], *TINY[-2:], "hydra.launcher.start=fork", FAULT]
    flags = ["--config-dir", "own", "-m", "hydra.searchpath=[more]"]
    swept = "callbacks.fault.kind=raise,none"
    run("experiment=tiny", *flags, *shared, swept, cwd=tmp_path, code=1)
    sweep = only_sweep(tmp_path)
    assert states(sweep) == ["failed", "done"]
    for folder in (own, more):
        shutil.rmtree(folder)
    moved = tmp_path / "outputs" / "sweep" / "moved"
    sweep.path.rename(moved)
    run("resume=outputs/sweep/moved", "retry_failed=true", "--config-dir", "own", cwd=tmp_path)
    sweep = SweepFolder(moved)
    assert states(sweep) == ["done"] * 2
    for job in sweep.ledger.read().values():
        folder = sweep.run(job.name)
        assert run_config.read_config(folder)["seed"] == 7
        assert load_run(folder, data=["data=other"]).data_config()["test_size"] == 77
        assert load_run(folder, data=["data=mine"]).data_config()["train_size"] == 200


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_sweep_is_resumed(tmp_path: Path, ranks: int) -> None:
    images = 20000 if ranks == 1 else 8000  # enough for several seconds; steps of two ranks are slow
    arguments = [
        *("-m", *TINY[:2], f"data.train_size={images}", "trainer.max_epochs=4", "trainer.accelerator=cpu"),
        *("optim.lr=0.1,0.01,0.001", *(["trainer=ddp", "trainer.devices=2"] if ranks == 2 else [])),
    ]
    with begin(*arguments, cwd=tmp_path) as process:
        wait_until(lambda: list(tmp_path.glob("outputs/sweep/*/*/checkpoints/last.ckpt")))
        leaders = children_of(process.pid)
        family = [*leaders, *(rank for leader in leaders for rank in children_of(leader))]
        assert len(family) >= ranks
        process.kill()  # only this process: its children must end by themselves
        process.wait()
    wait_until(lambda: all(is_gone(pid) for pid in family), seconds=15)
    assert states(only_sweep(tmp_path)).count("done") < 3
    run("resume=last", cwd=tmp_path)
    jobs = jobs_of(tmp_path)
    assert [job.state for job in jobs] == ["done"] * 3
    logs = [(only_sweep(tmp_path).path / job.name / "train.log").read_text() for job in jobs]
    assert [log.count(" weights)") for log in logs] == [1, 1, 1]
    assert max(log.count("epoch  train loss") for log in logs) == 2
    assert all(log.count(" 4/4 ") == 1 for log in logs)


def test_killed_sweep_of_a_users_module_is_resumed_unless_its_code_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source := tmp_path / "src" / "own_of_sweep.py").parent.mkdir()
    text = 'from user_modules import AutoEncoder\n\nCONFIG_TARGETS = ("Net",)\n\n\nclass Net(AutoEncoder):\n'
    source.write_text(f'{text}    """Own module."""\n')
    monkeypatch.syspath_prepend(source.parent)
    shared = [
        *("task=custom", "task._target_=own_of_sweep.Net", "data._target_=user_modules.VectorData"),
        *("+data.size=4000", "monitor=val_loss", "trainer.accelerator=cpu", "trainer.max_epochs=3"),
        "callbacks.last.every_steps=50",
    ]
    with begin("-m", *shared, "+task.dim=2,3", "hydra.launcher.jobs=1", cwd=tmp_path) as process:
        wait_until(lambda: list(tmp_path.glob("outputs/sweep/*/*/checkpoints/last.ckpt")))
        jobs = children_of(process.pid)
        process.kill()
        process.wait()
    wait_until(lambda: all(is_gone(pid) for pid in jobs), seconds=15)
    assert "done" not in states(only_sweep(tmp_path))
    source.write_text(f"{text}    dropout = 0.5\n")
    refused = run("resume=last", cwd=tmp_path, code=2).stderr
    assert "the code has changed (own_of_sweep.py), so results would not be comparable" in refused
    source.write_text(f'{text}    """Own module, described better."""\n')
    run("resume=last", cwd=tmp_path)
    sweep = only_sweep(tmp_path)
    assert states(sweep) == ["done"] * 2
    (alone := tmp_path / "alone").mkdir()
    run(*shared, "+task.dim=2", cwd=alone)
    (straight,) = alone.glob("outputs/*/*/checkpoints/last.ckpt")
    resumed = sweep.run(jobs_of(tmp_path)[0].name).path / "checkpoints" / "last.ckpt"
    assert difference(state_of(straight), state_of(resumed)) == ""


def test_killed_extension_of_a_grid_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("-m", *TINY[:-1], "trainer.max_epochs=2", FAULT, "optim.lr=0.1,1e-2", cwd=tmp_path)
    sweep = only_sweep(tmp_path)
    first = jobs_of(tmp_path)
    refused = run("resume=last", "optim.lr=-1", "seeds=2", cwd=tmp_path, code=2).stderr
    assert refused.startswith("error: job ")
    assert jobs_of(tmp_path) == first
    # The values of old jobs are left out in part; a stopped job waits until the sweep is killed.
    extension = ["resume=last", "optim.lr=0.01,0.05", "callbacks.fault.kind=none,stop", "seeds=2"]
    with begin(*extension, "hydra.launcher.jobs=12", cwd=tmp_path) as process:
        wait_until(lambda: len(list(sweep.path.glob("*.failed"))) == 4)
        wait_until(lambda: states(sweep).count("done") == 6)
        children = children_of(process.pid)
        process.kill()
        process.wait()
    wait_until(lambda: all(is_gone(pid) for pid in children), seconds=15)
    run("resume=last", cwd=tmp_path)
    jobs = jobs_of(tmp_path)
    assert [job.state for job in jobs] == ["done"] * 10
    assert [job.attempts for job in jobs].count(1) == 6
    assert [(job.name, job.finished) for job in jobs[:2]] == [(job.name, job.finished) for job in first]
    settings = [tuple(job.settings.values()) for job in jobs]
    assert set(settings[:2]) == {("0.1", "none", "1"), ("0.01", "none", "1")}
    assert len(set(settings)) == 10
    assert len({job.point_key for job in jobs}) == len({job.point for job in jobs}) == 5
    assert len((sweep.path / "jobs.csv").read_text().splitlines()) == 11
    again = run("resume=last", *extension[1:], cwd=tmp_path).stdout
    assert ": 0 new jobs\n" in again
    assert len(jobs_of(tmp_path)) == 10

    def refuse_write(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder / "x.probe"))

    with monkeypatch.context() as patched:  # inherited by the forked command
        patched.setattr("project.sweeps.sweepers.base.probe", refuse_write)
        (line,) = run("resume=last", "seeds=3", cwd=tmp_path, code=2).stderr.splitlines()
        assert f": {sweep.path.relative_to(tmp_path)} cannot be written (Permission denied); make" in line
        run("resume=last", cwd=tmp_path)  # writes nothing that matters
    table = (sweep.path / "jobs.csv").read_text()
    for lost in (sweep.ledger.file.read_bytes()[:30], None):
        sweep.ledger.file.unlink()
        if lost is not None:
            sweep.ledger.file.write_bytes(lost)
        (line,) = run("resume=last", cwd=tmp_path, code=2).stderr.splitlines()
        assert re.search(
            r"jobs\.jsonl is missing or incomplete .* got none for 0\S+ and 9 more\); restore", line
        )
    assert (sweep.path / "jobs.csv").read_text() == table


def test_another_process_joins_a_running_sweep(tmp_path: Path) -> None:
    swept = ["callbacks.fault.kind=stop,none", "seed=1,2", "hydra.launcher.jobs=1"]
    with begin("-m", *TINY, FAULT, *swept, cwd=tmp_path) as process:
        wait_until(lambda: list(tmp_path.glob("outputs/sweep/*/*.failed")))
        sweep = only_sweep(tmp_path)
        with begin("resume=last", "join=true", "hydra.launcher.jobs=1", cwd=tmp_path) as joined:
            wait_until(lambda: len(list(sweep.path.glob("*.failed"))) == 2)  # job 1 is stopped, too
            for pid in (*children_of(joined.pid), *children_of(process.pid)):
                os.kill(pid, signal.SIGCONT)
            shown, errors = joined.communicate()
            assert joined.returncode == 0, shown + errors
        shown, errors = process.communicate()
        assert process.returncode == 0, shown + errors
    jobs = jobs_of(tmp_path)
    assert [(job.state, job.attempts) for job in jobs] == [("done", 1)] * 4
    logs = [(sweep.path / job.name / "train.log").read_text() for job in jobs]
    assert [log.count(" weights)") for log in logs] == [1] * 4
    (log,) = sweep.path.glob("sweep.*-*.log")
    assert "done        1 " in log.read_text()
    assert not (sweep.path / ".claims").exists()
    refused = run("resume=last", "join=true", cwd=tmp_path, code=2).stderr
    assert refused.startswith("error: join=true: outputs/sweep/")


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stop_signal_stops_all_jobs(tmp_path: Path, stop: signal.Signals, code: int) -> None:
    forever = [*TINY[:5], "trainer.max_epochs=100000", "~callbacks.early_stopping", "seed=1,2,3"]
    with begin("-m", *forever, cwd=tmp_path) as process:
        wait_until(lambda: list(tmp_path.glob("outputs/sweep/*/*/checkpoints/last.ckpt")))
        jobs = children_of(process.pid)
        process.send_signal(stop)
        shown, errors = process.communicate(timeout=60)
    assert process.returncode == code, shown + errors
    assert all(is_gone(pid) for pid in jobs)
    assert set(states(only_sweep(tmp_path))) == {"interrupted", "waiting"}
    assert "stop requested: waiting for" in shown
    assert errors.splitlines()[-1].startswith("error: 3 of 3 jobs left; resume=outputs/sweep/")


def test_stuck_job_is_killed_and_can_be_retried(tmp_path: Path) -> None:
    limits = ["hydra.launcher.stuck_after_s=10", "hydra.launcher.grace_s=1"]
    run("-m", *TINY, FAULT, "callbacks.fault.kind=stop", *limits, cwd=tmp_path, code=1)
    (job,) = jobs_of(tmp_path)
    assert job.state == "failed"
    assert (job.error or "").startswith("hydra.launcher.stuck_after_s=10: no file of the job's folder")
    assert only_sweep(tmp_path).run(job.name).read_status()["state"] == "failed"
    run(f"resume={only_sweep(tmp_path).path}", "retry_failed=true", cwd=tmp_path)
    assert states(only_sweep(tmp_path)) == ["done"]


def test_fail_fast_stops_at_the_first_failure(tmp_path: Path) -> None:
    swept = ["callbacks.fault.kind=raise", "seed=range(1,7)", "hydra.launcher.jobs=1"]
    run("-m", *TINY, FAULT, *swept, "hydra.launcher.fail_fast=true", cwd=tmp_path, code=1)
    assert states(only_sweep(tmp_path)) == ["failed", *["waiting"] * 5]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["model=mlp,cnnn"], "error: model=cnnn: no such option"),
        (["seed=1,2", "optim.lr=0.1,-1"], "error: job 1: optim.lr=-1: must be above 0"),
        (["seed=1,2", "optim.lrr=0.1"], "error: optim.lrr=0.1: no key optim.lrr"),
        (
            ["seed=1,2", "hydra/launcher=locl"],
            "error: hydra/launcher=locl: no such option; did you mean local",
        ),
        (
            ["seed=1,2", "hydra/sweeper=optuna", "hydra.sweeper.n_trial=3"],
            "error: hydra.sweeper.n_trial=3: no key hydra.sweeper.n_trial; did you mean hydra.sweeper",
        ),
        (["seed=1,2", "hydra.launcher.jobs=0"], "error: hydra.launcher.jobs=0: must be at least 1"),
        (["seed=1,2", "seeds=0"], "error: seeds=0: must be at least 1"),
        (["seed=1", "hydra/sweeper=optuna"], "error: hydra/sweeper=optuna: nothing to search"),
        (
            ["seed=1,2", "hydra/sweeper=optuna", "hydra.sweeper.sampler=tpee"],
            "error: hydra.sweeper.sampler=tpee: did you mean tpe",
        ),
    ],
)
def test_wrong_input_is_reported_before_any_job_starts(
    tmp_path: Path, arguments: list[str], line: str
) -> None:
    done = run("-m", *arguments, cwd=tmp_path, code=2)
    assert done.stderr.startswith(line), done.stderr
    assert not list(tmp_path.glob("outputs/sweep/*"))


def test_hydras_basic_launcher_works(tmp_path: Path) -> None:
    run("-m", *TINY, "seed=1,2", "hydra/launcher=basic", cwd=tmp_path)
    jobs = jobs_of(tmp_path)
    assert [(job.state, job.name) for job in jobs] == [("done", "0_seed1"), ("done", "1_seed2")]
    assert (only_sweep(tmp_path).path / "1_seed2" / "status.json").exists()


def test_shared_search_with_pruning_finds_the_optimum(tmp_path: Path) -> None:
    storage = f"journal:{tmp_path / 'shared.journal'}"
    search = [
        *("-m", *BOWL, "hydra/sweeper=optuna", "+loss.x=interval(-1,1)", "trainer.max_epochs=3"),
        *("hydra.sweeper.pruner=median", f"hydra.sweeper.storage='{storage}'", "hydra.sweeper.study=bowl"),
        "hydra.sweeper.n_trials=20",
    ]
    processes = []
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        processes.append(begin(*search, cwd=tmp_path / str(number)))
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    import optuna

    from project.runs.optuna_studies import open_storage

    study = optuna.load_study(study_name="bowl", storage=open_storage(storage))
    ends = [trial.state.name for trial in study.trials]
    assert len(ends) == 40
    assert set(ends) == {"COMPLETE", "PRUNED"}
    assert study.best_params["+loss.x"] == pytest.approx(0.3, abs=0.1)
    assert len({trial.user_attrs["sweep"] for trial in study.trials}) == 2
    assert len({trial.params["+loss.x"] for trial in study.trials}) > 35, "each sweep suggests its own points"
    sweeps = [only_sweep(tmp_path / number) for number in ("1", "2")]
    assert [len(sweep.ledger.read()) for sweep in sweeps] == [20, 20]
    assert {"history.png", "trials.csv", "jobs.csv"} <= {file.name for file in sweeps[0].path.iterdir()}


def test_failed_trials_are_retried_in_a_moved_folder(tmp_path: Path) -> None:
    search = [
        *("-m", *BOWL, "hydra/sweeper=optuna", "+loss.x=interval(0,1)", "hydra.sweeper.n_trials=2"),
        *("trainer.max_epochs=3", FAULT, "callbacks.fault.kind=raise", "hydra.sweeper.pruner=median"),
    ]
    run(*search, cwd=tmp_path, code=1)
    sweep = only_sweep(tmp_path)
    assert states(sweep) == ["failed", "failed"]
    moved = sweep.path.rename(sweep.path.with_name("moved"))
    run(
        f"resume={moved.relative_to(tmp_path)}",
        "retry_failed=true",
        "hydra.sweeper.n_trials=3",
        cwd=tmp_path,
        code=1,
    )
    jobs = jobs_of(tmp_path)
    assert [(job.number, job.state) for job in jobs] == [(0, "done"), (1, "done"), (2, "failed")]
    rows = (moved / "trials.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1] for row in rows] == ["fail", "fail", "complete", "complete", "fail"]
    assert float(rows[2].split(",")[3]) == pytest.approx(jobs[0].metrics["val/loss"])
    assert rows[2].split(",")[2] == rows[0].split(",")[2]


def test_search_starts_with_known_points_and_is_extended(tmp_path: Path) -> None:
    search = ["-m", *BOWL, "hydra/sweeper=optuna", "+loss.x=interval(0,1)", "trainer.max_epochs=1"]
    points = tmp_path / "points.txt"
    points.write_text("loss.x=0.75\n+loss.x=0.5\n")
    run(*search, "hydra.sweeper.n_trials=3", "hydra.sweeper.file=points.txt", cwd=tmp_path)
    sweep = only_sweep(tmp_path)
    assert [job.settings["loss.x"] for job in jobs_of(tmp_path)[:2]] == ["0.75", "0.5"]
    points.write_text("loss.x=0.25\nloss.x=0.5  # known\n")
    run("resume=last", "hydra.sweeper.file=points.txt", cwd=tmp_path)
    assert [job.settings["loss.x"] for job in jobs_of(tmp_path)[3:]] == ["0.25"]
    for word, line in (
        ("hydra.sweeper.n_trials=2", "4 trials of outputs/sweep/"),
        ("+loss.x=interval(0,2)", "outputs/sweep/"),
    ):
        assert f"{word}: {line}" in run("resume=last", word, cwd=tmp_path, code=2).stderr
    points.write_text("loss.x=1.5\n")
    refused = run("resume=last", "hydra.sweeper.file=points.txt", cwd=tmp_path, code=2).stderr
    assert "loss.x=1.5: outside of the search space" in refused
    run("resume=last", "hydra.sweeper.n_trials=5", cwd=tmp_path)
    assert len(jobs_of(tmp_path)) == 5
    (second := tmp_path / "second").mkdir()
    known = f"hydra.sweeper.warm_start={sweep.path}"
    run(*search, known, "hydra.sweeper.n_trials=1", cwd=second)
    rows = (only_sweep(second).path / "trials.csv").read_text().splitlines()
    earlier = (sweep.path / "trials.csv").read_text().splitlines()
    assert rows[:-1] == earlier
    assert len(jobs_of(second)) == 1
    assert jobs_of(second)[0].settings not in [job.settings for job in jobs_of(tmp_path)]
    refused = run(*search, known, "monitor=val/acc", "mode=max", cwd=second, code=2).stderr
    assert f"{known}: a search by val/loss, and not by val/acc" in refused


def test_killed_search_is_resumed_and_pruning_stops_all_ranks(tmp_path: Path) -> None:
    search = [
        *("-m", *(text for text in BOWL if "train_size" not in text), "data.train_size=600"),
        *("hydra/sweeper=optuna", "+loss.x=choice(0.3,1.0)", "trainer.max_epochs=40"),
        *("trainer=ddp", "trainer.devices=2", "hydra.sweeper.n_trials=4"),
        *("hydra.sweeper.sampler=brute_force", "hydra.sweeper.pruner=threshold"),
        "hydra.sweeper.pruner_options={upper:0.1}",
    ]
    with begin(*search, cwd=tmp_path) as process:
        wait_until(lambda: list(tmp_path.glob("outputs/sweep/*/*/checkpoints/last.ckpt")))
        process.kill()
    run("resume=last", "hydra.sweeper.n_trials=2", cwd=tmp_path)
    sweep = only_sweep(tmp_path)
    jobs = jobs_of(tmp_path)
    ends = {job.varied[0]: job.state for job in jobs}
    assert ends == {"+loss.x=0.3": "done", "+loss.x=1.0": "pruned"}
    pruned = next(job for job in jobs if job.state == "pruned")
    status = sweep.run(pruned.name).read_status()
    assert status["ranks"] == 2
    assert status["progress"]["epoch"] < 40
    import optuna

    from project.runs.optuna_studies import open_storage

    study = optuna.load_study(
        study_name=None, storage=open_storage(f"journal:{sweep.path / 'study.journal'}")
    )
    assert sorted(trial.state.name for trial in study.trials) == ["COMPLETE", "PRUNED"]
