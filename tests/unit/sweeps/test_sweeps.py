"""Tests of a sweep's parts without processes: devices, ledger, job states and tables."""

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest

from project.config import resume
from project.config.allowed_targets import own_packages
from project.config.source_index import source_files, with_own_imports
from project.errors import InputError
from project.runs.provenance import changed_names, fingerprint, now
from project.runs.sweep_folder import SweepFolder, create
from project.runs.sweep_jobs import Job, Ledger, folder_name
from project.runtime.process import command_state
from project.sweeps.device_slots import DeviceRequest, DeviceSlots, request_devices
from project.sweeps.job_scheduler import JobList, classify_exit, reconcile_jobs
from project.sweeps.job_table import best_job, count_states, results_table, training_command, write_jobs

CONF = Path(__file__).resolve().parents[3] / "conf"


def job(number: int, state: str = "waiting", seed: int | None = None, **facts: object) -> Job:
    varied = [f"optim.lr={10.0**-number:g}", *([] if seed is None else [f"seed={seed}"])]
    return Job(number, ["model=mlp", *varied], varied, folder_name(number, varied), state=state, **facts)  # type: ignore[arg-type]


def test_ledger_uses_a_jobs_last_complete_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "jobs.jsonl")
    assert ledger.read() == {}
    ledger.write(job(1), job(0))
    ledger.write(job(1, "done", value=0.5, metrics={"val/acc": 0.5}))
    with ledger.file.open("a") as stream:
        stream.write('{"number": 0, "state": "do')
    assert [one.state for one in ledger.read().values()] == ["waiting", "done"]
    ledger.write(job(0, "failed", error="no"))
    assert [one.state for one in ledger.read().values()] == ["failed", "done"]
    assert all(json.loads(line) for line in ledger.file.read_text().splitlines())


@pytest.mark.parametrize("line", [b"\xff\xfe\x00", b'{"number": 7}', b"[1]", b"null", b"{"])
def test_damaged_ledger_line_is_reported(tmp_path: Path, line: bytes) -> None:
    ledger = Ledger(tmp_path / "jobs.jsonl")
    ledger.write(job(1), job(0))
    with ledger.file.open("ab") as stream:
        stream.write(line + b"\n")
    with pytest.raises(InputError, match=r"jobs\.jsonl: line 3 is damaged; remove it"):
        ledger.read()


def test_each_device_is_leased_once() -> None:
    slots = DeviceSlots(cpus=16, gpus=("0", "1", "2", "3"), num_jobs=10)
    two = slots.lease(DeviceRequest(2, 2))
    halves = [slots.lease(DeviceRequest(1, 0.5)) for _ in range(4)]
    assert two is not None
    assert slots.lease(DeviceRequest(1, 0.5)) is None
    used = [gpu for lease in halves for gpu in (lease.gpus if lease else ())]
    assert sorted(used) == sorted([*used[:2], *used[:2]])
    assert set(two.gpus).isdisjoint(used)
    assert slots.are_full
    slots.release(two)
    assert not slots.are_full
    again = slots.lease(DeviceRequest(2, 2))
    assert again is not None
    assert again.gpus == two.gpus


def test_threads_are_divided_equally() -> None:
    slots = DeviceSlots(cpus=8, num_jobs=100)
    leases = []
    while (lease := slots.lease(DeviceRequest(2))) is not None:
        leases.append(lease)
    assert len(leases) == 4
    assert {lease.threads for lease in leases} == {1}
    few = DeviceSlots(cpus=8, num_jobs=2).lease(DeviceRequest(1))
    assert few is not None
    assert few.threads == 4
    capped = DeviceSlots(cpus=8, max_jobs=1, num_jobs=50)
    one = capped.lease(DeviceRequest(2))
    assert one is not None
    assert one.threads == 4
    assert capped.lease(DeviceRequest(1)) is None
    large = DeviceSlots(cpus=2).lease(DeviceRequest(16))
    assert large is not None, "a job that is too large for the machine runs alone"


@pytest.mark.parametrize(
    ("trainer", "gpus", "share", "expected"),
    [
        ({"accelerator": "cpu", "devices": 2}, 8, "auto", DeviceRequest(2)),
        ({"accelerator": "auto", "devices": 1}, 0, "auto", DeviceRequest(1)),
        ({"accelerator": "auto", "devices": "auto"}, 4, "auto", DeviceRequest(4, 4)),
        ({"accelerator": "gpu", "devices": "2"}, 4, "auto", DeviceRequest(2, 2)),
        ({"accelerator": "auto", "devices": 1}, 1, 0.25, DeviceRequest(1, 0.25)),
        ({"accelerator": "auto", "devices": "auto"}, 8, 2, DeviceRequest(2, 2)),
    ],
)
def test_devices_are_derived_from_the_trainer(
    trainer: dict[str, object], gpus: int, share: float | str, expected: DeviceRequest
) -> None:
    assert request_devices(trainer, gpus, share) == expected


def test_missing_or_contradictory_devices_are_refused() -> None:
    with pytest.raises(InputError, match=r"trainer\.devices=3: this machine has 2 GPUs"):
        request_devices({"accelerator": "auto", "devices": 3}, 2, "auto")
    with pytest.raises(InputError, match=r"trainer\.accelerator=gpu: torch finds no GPU"):
        request_devices({"accelerator": "gpu", "devices": 1}, 0, "auto")
    with pytest.raises(InputError, match=r"set trainer\.devices=2 and hydra\.launcher\.gpus=\[0, 3\]"):
        request_devices({"accelerator": "gpu", "devices": [0, 3]}, 4, "auto")
    with pytest.raises(InputError, match=r"gpus_per_job=2: .* set trainer=ddp trainer\.devices=2"):
        request_devices({"accelerator": "auto", "devices": 1}, 2, 2)


def write_checkpoint(folder: SweepFolder, name: str, *, damaged: bool = False) -> None:
    import torch

    checkpoint = folder.run(name).last_checkpoint
    checkpoint.parent.mkdir(parents=True)
    torch.save({"a": torch.zeros(100)}, checkpoint)
    if damaged:
        checkpoint.write_bytes(checkpoint.read_bytes()[:-200])


def test_exit_is_classified_by_the_job_folder(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    cases = {
        "done": ({"state": "done", "value": 0.5, "metrics": {"val/acc": 0.5}}, -9, "done", None),
        "lying": ({"state": "running"}, 0, "failed", "ended with exit code 0, without a result"),
        "killed": ({"state": "running"}, -9, "failed", "killed by SIGKILL, perhaps for lack of memory"),
        "raised": ({"state": "failed", "error": "ValueError: no"}, 1, "failed", "ValueError: no"),
        "stopped": ({"state": "interrupted"}, 130, "interrupted", None),
        "terminated": ({"state": "running"}, 143, "interrupted", None),
        "preempted": ({"state": "running"}, 75, "interrupted", None),
        "too_early": ({"state": "starting"}, -10, "interrupted", None),  # SIGUSR1
        "diverged": ({"state": "failed", "error": "NonFiniteError: nan"}, 4, "failed", "NonFiniteError: nan"),
        "nothing": ({}, 1, "failed", "ended with exit code 1, without a result"),
    }
    for name, (status, exit_code, state, error) in cases.items():
        (tmp_path / name).mkdir()
        folder.run(name).write_status(**status)
        one = job(0, "running")
        classify_exit(one, folder.run(name), exit_code)
        assert (one.state, one.error) == (state, error), name
    assert folder.run("done").read_status()["value"] == 0.5
    one = job(0, "running")
    classify_exit(one, folder.run("killed"), -9, is_stopping=True)
    assert one.state == "interrupted", "killed after the grace period"


def test_killed_sweep_is_reconciled_from_job_folders(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    jobs = [job(0, "running"), job(1, "running"), job(2, "failed"), job(3, "done"), job(4, "waiting")]
    for one, state in zip(jobs, ("done", "running", "failed", "done", "done"), strict=True):
        (tmp_path / one.name).mkdir()
        folder.run(one.name).write_status(state=state, value=0.25)
    reconcile_jobs(folder, jobs, retry_failed=False)
    assert [one.state for one in jobs] == ["done", "waiting", "failed", "done", "done"]
    assert jobs[0].value == 0.25
    assert [one.state for one in folder.ledger.read().values()] == ["done", "waiting", "done"]
    reconcile_jobs(folder, jobs, retry_failed=True)
    assert jobs[2].state == "waiting"


def test_damaged_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    write_checkpoint(folder, "whole")
    write_checkpoint(folder, "damaged", damaged=True)
    whole = [folder.run(name).newest_checkpoint().path is not None for name in ("whole", "damaged", "none")]
    assert whole == [True, False, False]


def test_code_fingerprint_ignores_comments(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    file = package / "a.py"
    file.write_text('"""Text."""\n\ndef f(x):\n    """More."""\n    return x + 1  # one\n')
    before = fingerprint(package)
    file.write_text('"""Other text."""\ndef f(x):\n    return (x\n        + 1)\n')
    assert changed_names(before, fingerprint(package)) == []
    file.write_text("def f(x):\n    return x + 2\n")
    (package / "b.py").write_text("")
    assert changed_names(before, fingerprint(package)) == ["a.py", "b.py"]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepFolder:
    monkeypatch.setattr(command_state, "resumed_sweep", None)
    outputs = tmp_path / "outputs"
    return create(str(outputs / "sweep" / "one"), [CONF], ["model=mlp,cnn", "hydra.launcher.jobs=1"])


@pytest.mark.slow
def test_sweep_is_resumed_with_its_own_configuration_files(sweep: SweepFolder) -> None:
    outputs = f"paths.outputs={sweep.path.parent.parent}"
    defaults = CONF / "train.yaml"
    whole = ["-m", "--config-path", str(sweep.conf), "model=mlp,cnn", "hydra.launcher.jobs=1"]
    for arguments in (
        [f"resume={sweep.path}"],
        ["-m", "resume=last", outputs, "model=mlp,cnn"],
        ["resume=last", outputs],
    ):
        assert resume.detach_resumed(arguments, defaults) == whole
    changed = resume.detach_resumed(
        [f"resume={sweep.path}", "hydra.launcher.jobs=4", "retry_failed=true"], defaults
    )
    assert changed == [*whole[:-1], "hydra.launcher.jobs=4"]
    assert command_state.resumed_sweep is not None
    assert command_state.resumed_sweep.folder.path == sweep.path
    assert command_state.resumed_sweep.retry is True
    assert (sweep.conf / "model" / "cnn.yaml").read_text() == (CONF / "model" / "cnn.yaml").read_text()


@pytest.mark.slow
def test_overrides_of_a_resumed_sweep_add_jobs_or_are_refused(sweep: SweepFolder) -> None:
    varied = [["model=mlp"], ["model=cnn"]]
    sweep.ledger.write(*(Job(number, words, words, str(number)) for number, words in enumerate(varied)))

    def detach(*words: str) -> list[str]:
        return resume.detach_resumed([f"resume={sweep.path}", *words], CONF / "train.yaml")

    extension = ["model=vit", "optim.lr=0.1,0.2", "seeds=3", "hydra.sweeper.file=points.txt"]
    arguments = detach(*extension)
    assert arguments[3:] == [
        *("model=mlp,cnn", "hydra.launcher.jobs=1", "seeds=3", "hydra.sweeper.file=points.txt"),
    ]
    continued = command_state.resumed_sweep
    assert continued.extension == [
        "model=vit",
        "optim.lr=0.1,0.2",
        "seeds=3",
        "hydra.sweeper.file=points.txt",
    ]
    assert continued.kept == ["seeds=3"]
    sweep.record_extension(continued.extension, continued.kept)
    assert detach() == [*arguments[:5], "seeds=3"]
    assert command_state.resumed_sweep.extension == []
    detach("join=true", "hydra.launcher.jobs=2")
    assert command_state.resumed_sweep.join
    with pytest.raises(InputError, match="seeds=4: join=true runs jobs of the sweep as it is"):
        detach("join=true", "seeds=4")
    for word, message in (
        ("data=mnist", r"would change the jobs of .*, as in data=PRESENT_VALUE,mnist"),
        ("hydra.sweeper.max_points=5", "a resumed sweep keeps its hydra.sweeper.max_points"),
        ("folds=5", "a resumed sweep keeps its folds"),
        ("~callbacks.last", "a resumed sweep keeps its callbacks.last"),
    ):
        with pytest.raises(InputError, match=rf"^{word}: {message}"):
            detach(word)


def test_jobs_that_are_added_to_a_ledger_are_recorded_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "jobs.jsonl")
    ledger.write(job(0, "done"))
    with ledger.file.open("a") as stream:
        stream.write('{"number": 0, "state": "do')

    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("project.runs.sweep_jobs.sync", fail)
        with pytest.raises(OSError, match="No space"):
            ledger.add(job(1), job(2))
    assert list(ledger.read()) == [0]
    ledger.add(job(1), job(2))
    assert [one.state for one in ledger.read().values()] == ["done", "waiting", "waiting"]
    assert [file.name for file in tmp_path.iterdir()] == ["jobs.jsonl"]


def test_jobs_of_a_list_start_within_its_time_only() -> None:
    source = JobList([job(0), job(1), job(2)], timeout_s=0.05)
    time.sleep(0.1)  # as while modules are imported
    assert source.next_job() is not None
    time.sleep(0.1)
    assert source.next_job() is None


@pytest.mark.slow
def test_resume_last_finds_the_newest_sweep(sweep: SweepFolder) -> None:
    outputs = sweep.path.parent.parent
    job = sweep.run("0_mlp")
    job.path.mkdir()
    job.write_status(state="done", started=now())
    arguments = ["resume=last", f"paths.outputs={outputs}"]
    later = create(str(outputs / "sweep" / "two"), [CONF], ["model=mlp,cnn"])
    for started, last in (("", later), (now(), sweep)):  # the first sweep may have been resumed since
        if started:
            job.write_status(started=started)
        resume.detach_resumed(arguments, CONF / "train.yaml")
        assert command_state.resumed_sweep is not None
        assert command_state.resumed_sweep.folder.path == last.path


@pytest.mark.slow
def test_changed_code_is_refused(sweep: SweepFolder) -> None:
    sweep.refuse_changed_code()
    record = json.loads(sweep.record_file.read_text())
    record["code"]["modules/cnn.py"] = "other"
    sweep.record_file.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"the code has changed \(modules/cnn\.py\)"):
        sweep.refuse_changed_code()


def test_changed_code_of_the_users_package_is_refused(
    sweep: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (package := tmp_path / "src" / "mine_changed").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "nets.py").write_text('CONFIG_TARGETS = ("Net",)\nimport helpers_changed.a\nclass Net: ...\n')
    (helpers := tmp_path / "src" / "helpers_changed").mkdir()
    (helpers / "__init__.py").touch()
    (helpers / "a.py").write_text("def f():\n    from deep_changed import x\nimport torch, os\n")
    (tmp_path / "src" / "deep_changed.py").write_text("import helpers_changed\nx = 1\n")
    (tmp_path / "src" / "unused_changed.py").write_text("x = 1\n")
    (package / "parts.py").write_text("WIDTH = 1\n")
    (tmp_path / "src" / "single_changed.py").write_text('CONFIG_TARGETS = ("Data",)\nclass Data: ...\n')
    monkeypatch.syspath_prepend(tmp_path / "src")
    targets = [
        "mine_changed.nets.Net",
        "single_changed.Data",
        "torch.nn.Linear",
        "project.modules.losses.Mine",
    ]
    names = own_packages(targets)
    assert names == ["mine_changed", "single_changed"]
    names = with_own_imports(names)
    assert names == ["deep_changed", "helpers_changed", "mine_changed", "single_changed"]

    def check(*packages: str, is_checked: bool = True) -> None:
        sweep.record_own_code({one: source_files(one) for one in packages}, is_checked=is_checked)

    check(*names, is_checked=False)
    (package / "parts.py").write_text("# as before\nWIDTH = 1\n")
    check(*names)
    (package / "parts.py").write_text("WIDTH = 2\n")
    check("single_changed")  # the remaining jobs may need fewer packages
    check(*names, is_checked=False)
    with pytest.raises(
        InputError, match=r"the code has changed \(mine_changed/parts\.py\), .*changed_code=true"
    ):
        check(*names)
    (package / "parts.py").write_text("WIDTH = 1\n")
    (tmp_path / "src" / "single_changed.py").write_text('CONFIG_TARGETS = ("Data",)\nclass Data: x = 1\n')
    with pytest.raises(InputError, match=r"the code has changed \(single_changed\.py\)"):
        check(*names)
    (tmp_path / "src" / "single_changed.py").write_text('CONFIG_TARGETS = ("Data",)\nclass Data: ...\n')
    (tmp_path / "src" / "deep_changed.py").write_text("import helpers_changed\nx = 2\n")
    with pytest.raises(InputError, match=r"the code has changed \(deep_changed\.py\)"):
        check(*names)


def test_installed_packages_beside_the_users_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "site-packages").mkdir()
    (folder / "mine_installed.py").write_text("import other_installed\n")
    (folder / "other_installed.py").touch()
    monkeypatch.syspath_prepend(folder)
    assert with_own_imports(["mine_installed"]) == ["mine_installed"]


@pytest.mark.slow
def test_sweep_folder_is_locked(sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("project.runs.sweep_folder.LOCK_TIMEOUT_S", 0.1)
    with sweep.locked(), pytest.raises(InputError, match="this sweep is running already"), sweep.locked():
        pass
    with sweep.locked():
        pass


def test_tables_show_all_jobs_and_the_std_over_seeds(tmp_path: Path) -> None:
    jobs = [
        *(job(0, "done", s, point=0, value=v, metrics={"test/acc": v}) for s, v in ((1, 0.5), (2, 0.7))),
        *(job(1, "done", s, point=1, value=v) for s, v in ((1, 0.8), (2, 0.9))),
        job(2, "failed", 1, point=2, error="no"),
    ]
    best, worse, failed = results_table(jobs, "val/acc", "max").splitlines()[1:]
    assert best.split() == ["best", "0.1", "0.8500", "±", "0.0707", "2", "done"]
    assert worse.split() == ["2", "1", *("0.6000 ± 0.1414 " * 2).split(), "2", "done"]
    assert failed.split() == ["0.01", "0", "of", "1", "failed"]
    write_jobs(tmp_path / "jobs.csv", jobs)
    rows = (tmp_path / "jobs.csv").read_text().splitlines()
    assert rows[0] == "job,folder,optim.lr,seed,state,value,test/acc,duration_s,error"
    assert rows[1] == "0,0_lr1_seed1,1,1,done,0.5,0.5,,"


def test_table_of_runs_without_validation_has_no_empty_column() -> None:
    jobs = [job(number, "done", metrics={"test/acc": 0.5 + number / 10}) for number in range(2)]
    head, first, second, note = results_table(jobs, "val/acc", "max").splitlines()
    assert head.split() == ["job", "lr", "test/acc", "state", "time"]
    assert [first.split(), second.split()] == [["0", "1", "0.5000", "done"], ["1", "0.1", "0.6000", "done"]]
    assert note == "val/acc was not measured; the rows are in the order of the jobs"
    jobs[0].value = math.nan  # diverged
    assert "val/acc" in results_table(jobs, "val/acc", "max").splitlines()[0]


def test_closing_table_has_the_best_jobs_first_with_the_test_metric() -> None:
    values = [0.1 * number % 0.97 for number in range(100)]
    jobs = [
        job(number, "done", 1, point=number, value=value, metrics={"test/acc": value / 2, "test/loss": 1.0})
        for number, value in enumerate(values)
    ]
    jobs += [job(100, "failed", 1, point=100, error="no"), job(101, "pruned", 1, point=101)]
    jobs.append(job(102, "done", 1, point=102, value=math.nan))
    for number, one in enumerate(jobs):
        one.varied = [f"optim.lr={number}"]
    head, *rows, rest = results_table(jobs, "val/acc", "max", most=40).splitlines()
    assert head.split() == ["job", "lr", "val/acc", "test/acc", "state", "time"]
    assert [float(row.split()[3]) for row in rows] == [round(value, 4) for value in sorted(values)[:59:-1]]
    assert [row.split()[0] for row in rows] == ["best", *map(str, range(2, 41))]
    assert rest == "… and 63 jobs more"
    best = int(np.argmax(values))
    assert rows[0].split()[1:5] == [str(best), str(best), f"{max(values):.4f}", f"{max(values) / 2:.4f}"]
    assert count_states(jobs) == "103 jobs: 101 done, 1 failed, 1 pruned"
    last = results_table(jobs, "val/acc", "max", most=200).splitlines()[-3:]
    assert [line.split()[1:] for line in last] == [  # without a rank
        ["102", "nan", "done"],
        ["100", "failed"],
        ["101", "pruned"],
    ]
    found = best_job(jobs, "max")
    assert found is not None
    found.overrides = ["model=cnn", "name='a b'", "optim.lr=0.5", "+callbacks.pruning={}"]
    assert training_command(found).endswith(
        """scripts/train.py model=cnn 'name='"'"'a b'"'"'' optim.lr=0.5"""
    )
    started_by = ["project-train", "-m", "--config-dir", "conf", "-cn=own", "model=cnn,mlp", "optim.lr=0.5"]
    assert "train.py --config-dir conf -cn=own model=cnn 'name=" in training_command(found, started_by)
    assert best_job(jobs[100:], "max") is None
