"""Tests of `scripts/train.py`, started anew only if that matters, otherwise forked from this process."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import ROOT, read_table
from forked_command import ForkedCommand
from forked_command import run as fork

from project.config.cli import _flags_first, with_multirun_flag
from project.config.validation.command_request import refuse_wrong_arguments

FOREVER = (
    "model=mlp data=synthetic data.train_size=200 trainer.accelerator=cpu trainer.max_epochs=100000 "
    "~callbacks.early_stopping"
)
TINY = (
    "model=mlp data=synthetic data.train_size=200 data.test_size=101 "
    "trainer.accelerator=cpu trainer.max_epochs=2"
)


def train(
    *arguments: str, cwd: Path, code: int = 0, python: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONWARNINGS": "default", "OMP_NUM_THREADS": "1"} | variables
    done = subprocess.run(
        [sys.executable, *python, str(ROOT / "scripts" / "train.py"), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def popen(cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def training(
    cwd: Path, *arguments: str, fresh: bool = False
) -> Iterator[subprocess.Popen[str] | ForkedCommand]:
    """Start a run that does not end by itself, and wait for its first checkpoint."""
    arguments = (*FOREVER.split(), *arguments)
    process = popen(cwd, *arguments) if fresh else ForkedCommand(arguments, cwd)
    try:
        deadline = time.monotonic() + 120
        while not list(cwd.glob("outputs/*/*/checkpoints/last.ckpt")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        yield process
    finally:
        process.kill()


def only_run(cwd: Path) -> Path:
    (status,) = cwd.glob("outputs/*/*/status.json")
    return status.parent


def test_run_folder_contains_all_files(tmp_path: Path) -> None:
    done = train(
        *("model=cnn", "optim=adam", "trainer.max_epochs=2", "trainer.log_every_n_steps=10"),
        cwd=tmp_path,
    )
    assert done.stderr == "", "libraries' noise"
    run = only_run(tmp_path)
    assert re.fullmatch(r"cnn_digits_adam/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", f"{run.parent.name}/{run.name}")
    files = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    events = [file for file in files if file.startswith("events.out.tfevents")]
    assert [file.endswith(".results") for file in sorted(events)] == [False, True]
    assert files - set(events) == {
        *("config.yaml", "status.json", "metrics.csv", "train.log"),
        *(".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"),
        *(f"checkpoints/{name}.ckpt" for name in ("best", "last", "previous")),
        *(f"checkpoints/{name}.ckpt.sha256" for name in ("best", "last", "previous")),
        "projector_config.pbtxt",
        *(f"projector/test/{name}" for name in ("tensors.tsv", "metadata.tsv", "sprite.png")),
        ".lock",
    }
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["weights"], status["ranks"]) == ("done", "best", 1)
    assert status["metrics"]["test/images"] == 359
    assert status["metrics"]["test/acc"] > 0.85
    assert status["value"] == status["metrics"]["val/acc"]
    assert (run / ".hydra" / "overrides.yaml").read_text().split() == [
        *("-", "model=cnn", "-", "optim=adam", "-", "trainer.max_epochs=2"),
        *("-", "trainer.log_every_n_steps=10"),
    ]
    shown = done.stdout
    assert (
        f"test  {status['metrics']['test/loss']:.4f}  {status['metrics']['test/acc']:8.4f}  of 359 images"
        in shown
    )
    assert f"tensorboard --logdir {run.relative_to(tmp_path).parent}\n" in shown, "there, the run has a name"
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert "\r" not in shown
    assert "\x1b" not in shown
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["config"]["model"]["hidden_dim"] == 128
    check_tensorboard(run, status)


def check_tensorboard(run: Path, status: dict) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(run))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        *("train/loss", "train/acc", "val/loss", "val/acc", "vitals/lr", "vitals/grad_norm"),
        *("vitals/speed_images_per_s", "vitals/speed_data_wait_fraction"),
    }
    names = ("train/images", "test/confusion", "test/mistakes")
    assert events.Tags()["images"] == [f"visuals/{name}" for name in names]
    assert {"config/text_summary", "results/text_summary"} <= set(events.Tags()["tensors"])
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    columns = HParamsPluginData.FromString(content).session_start_info.hparams
    values = {name.strip(): columns[name].number_value for name in columns}
    assert values["test/acc"] == pytest.approx(status["metrics"]["test/acc"])
    assert values["val/best_acc"] == pytest.approx(status["value"])
    assert values["optim.lr"] == 0.001
    # A custom layout in one run would hide the metrics of other runs.
    assert "_hparams_/experiment" not in events.summary_metadata


def test_two_ranks_train_one_run_and_test_each_image_once(tmp_path: Path) -> None:
    fork(*TINY.split(), "trainer=ddp", "trainer.devices=2", cwd=tmp_path)
    run = only_run(tmp_path)
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["ranks"]) == ("done", 2)
    assert status["metrics"]["test/images"] == 101
    assert status["metrics"]["val/images"] == 20
    # Equal batches in the same order as on one device give equal weights, up to rounding.
    (tmp_path / "alone").mkdir()
    fork(*TINY.split(), cwd=tmp_path / "alone")
    alone = only_run(tmp_path / "alone")
    for name in ("train/loss", "val/loss"):
        pair = [float(row[name]) for row in read_table(run / "metrics.csv") if row[name]]
        single = [float(row[name]) for row in read_table(alone / "metrics.csv") if row[name]]
        assert pair == pytest.approx(single, rel=1e-4)


def test_killed_rank_ends_the_run_without_remaining_processes(tmp_path: Path) -> None:
    with training(tmp_path, "trainer=ddp", "trainer.devices=2") as process:
        ranks = children_of(process.pid)
        assert len(ranks) == 2
        os.kill(ranks[1], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    assert "rank 1 of 2 was killed by SIGKILL" in errors
    assert json.loads((only_run(tmp_path) / "status.json").read_text())["state"] == "failed"
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


def children_of(pid: int) -> list[int]:
    return sorted(int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def test_run_is_resumed_in_its_folder_with_its_configuration(tmp_path: Path) -> None:
    fork(*TINY.split(), "data.batch_size=32", "scheduler=step", cwd=tmp_path)
    run = only_run(tmp_path)
    fork("resume=last", "trainer.max_epochs=3", cwd=tmp_path)
    assert only_run(tmp_path) == run
    last = run / "checkpoints" / "last.ckpt"
    fork(f"ckpt_path={last}", "trainer.max_epochs=4", cwd=tmp_path)
    assert only_run(tmp_path) == run
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "done"
    assert [int(row["step"]) for row in read_table(run / "metrics.csv") if row["val/acc"]] == [6, 12, 18, 24]
    checkpoint = torch.load(last, weights_only=True)
    assert checkpoint["epoch"] == 3
    assert checkpoint["config"]["trainer"]["max_epochs"] == 4
    assert checkpoint["config"]["data"]["batch_size"] == 32
    kept = {file.name for file in last.parent.iterdir()}
    assert kept == {f"{name}.ckpt{end}" for name in ("best", "last", "previous") for end in ("", ".sha256")}
    # Refused changes do not modify the run.
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    for change, line in (
        ("model=cnn", "error: model=cnn: a resumed run keeps its model"),
        (
            "scheduler.gama=0.1",
            "error: scheduler.gama=0.1: no key scheduler.gama; did you mean scheduler.gamma?",
        ),
        ("model.widths=[64]", "error: model.widths=[64]: was [128]; the saved weights belong to"),
        ("optim.betas=[1.0,1.0]", "error: optim.betas=[1.0, 1.0]: must be at least 0 and below 1"),
        ("+optim.eps=-1", "error: optim: Invalid epsilon value"),
        ("+epoch=5", "error: +epoch=5: nothing reads epoch"),
    ):
        refused = fork("resume=last", change, "trainer.max_epochs=5", cwd=tmp_path, code=2)
        assert refused.stderr.startswith(line)
        assert len(refused.stderr.splitlines()) == 1
    after = {file: file.read_bytes() for file in before}
    logs = {run / "train.log", run / "status.json", run / "config.yaml"}
    assert [file for file in before if before[file] != after[file] and file not in logs] == []


def test_wrong_input_is_reported_in_one_line_before_importing_torch(tmp_path: Path) -> None:
    done = train("optim.lrr=1", cwd=tmp_path, code=2, python=("-X", "importtime"))
    (message,) = [text for text in done.stderr.splitlines() if not text.startswith("import time:")]
    assert message.startswith("error: optim.lrr=1: no key optim.lrr; did you mean optim.lr")
    assert done.stdout == ""
    assert not re.search(r"\| +(torch|lightning)$", done.stderr, re.MULTILINE)
    assert not (tmp_path / "outputs").exists()


def test_late_error_removes_the_folder_and_shows_a_traceback_on_request(tmp_path: Path) -> None:
    done = fork("model=mlp", "+optim.eps=-1", cwd=tmp_path, code=2)
    assert done.stderr == "error: optim: Invalid epsilon value: -1\n"
    assert list(tmp_path.iterdir()) == []
    done = fork("model=mlp", "+optim.eps=-1", "--traceback", cwd=tmp_path, code=2)
    assert "Traceback" in done.stderr


def test_last_weights_are_tested_without_validation_images(tmp_path: Path) -> None:
    done = fork(*TINY.split(), "data.val_size=0", cwd=tmp_path)
    assert "no validation images: disabled callbacks early_stopping, best" in done.stdout
    status = json.loads((only_run(tmp_path) / "status.json").read_text())
    assert status["weights"] == "last"
    assert status["value"] is None
    refused = fork(*TINY.split(), "data.val_size=0", "scheduler=plateau", cwd=tmp_path, code=2)
    assert "scheduler.monitor=val/acc: there are no validation images" in refused.stderr


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_run_prints_how_to_resume(tmp_path: Path, stop: signal.Signals, code: int) -> None:
    with training(tmp_path, fresh=stop is signal.SIGINT) as process:
        process.send_signal(stop)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert json.loads((only_run(tmp_path) / "status.json").read_text())["state"] == "interrupted"
    assert "Traceback" not in errors
    assert f"continue with resume={only_run(tmp_path).relative_to(tmp_path)}" in errors


def test_flags_are_accepted_between_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    flags = {
        "model=mlp --config-dir own experiment=x": "--config-dir own model=mlp experiment=x",
        "seed=1,2 --multirun model=mlp": "--multirun seed=1,2 model=mlp",
        "model=mlp --config-dir=own": "--config-dir=own model=mlp",
        "a=1 -cd own -m b=2 -cn other ~c": "-cd own -m -cn other a=1 b=2 ~c",
        "model=mlp --cfg job": "--cfg job model=mlp",
    }
    for typed, read in flags.items():
        refuse_wrong_arguments(typed.split())
        assert _flags_first(typed.split()) == read.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("sweep=learning_rate model=cnn", "-m sweep=learning_rate model=cnn"),
        ("+sweep=learning_rate", "-m +sweep=learning_rate"),
        ("hydra.mode=MULTIRUN model=cnn,mlp", "-m model=cnn,mlp"),
        ("-m sweep=learning_rate", "-m sweep=learning_rate"),
        ("sweep=learning_rate --cfg job", "sweep=learning_rate --cfg job"),
        ("sweep=learning_rate sweep=null", "sweep=learning_rate sweep=null"),
        ("model=cnn", "model=cnn"),
    ],
)
def test_sweep_preset_implies_the_multirun_flag(words: str, expected: str) -> None:
    assert with_multirun_flag(words.split()) == expected.split()


def test_lost_output_is_reported_after_training(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "train.py")]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, *TINY.split()],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "error: standard output: No space left on device; free disk" in done.stderr
    (status,) = tmp_path.glob("outputs/*/*/status.json")
    assert json.loads(status.read_text())["state"] == "done"


def test_help_ends_silently_without_a_reader() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, "")
