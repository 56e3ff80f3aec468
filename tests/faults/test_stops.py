"""One process that is told to stop, by signals, a time limit or its own loss."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from attempts import only_run, run, start, wait
from conftest import read_table

from project import preflight, stopping
from project.modules.classifier import ImageClassifier
from project.runs import checkpoint
from project.training.loop import EpochLoop

FOREVER = [
    *("model=mlp", "model.widths=[16]", "data=digits", "data.batch_size=32", "trainer.max_epochs=100000"),
    *("trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "~callbacks.early_stopping"),
]


def begin(cwd: Path, *more: str, before: Callable[[], object] | None = None) -> int:
    """Start a run that would go on for ever; come back when it has trained for a while."""
    process = start([*FOREVER, *more], cwd, before=before)
    wait_for(cwd, "outputs/*/*/metrics.csv")
    time.sleep(0.3)
    return process


def wait_for(path: Path, pattern: str = "") -> None:
    deadline = time.monotonic() + 60
    while not (list(path.glob(pattern)) if pattern else path.exists()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 75), (signal.SIGHUP, 129)],
)
def test_a_signal_saves_the_step_that_it_comes_in(tmp_path: Path, number: int, code: int) -> None:
    process = begin(tmp_path, "callbacks.last.every_epochs=0")  # nothing else saves
    os.kill(process, number)
    assert wait(process) == code

    stopped = only_run(tmp_path)
    saved = checkpoint.read(stopped.last_checkpoint)
    assert saved["global_step"] == int(read_table(stopped.path / "metrics.csv")[-1]["step"]) > 0
    assert stopped.read_status()["state"] == "interrupted"
    printed = (tmp_path / "log").read_text()
    assert "go on with resume=" in printed
    assert "Traceback" not in printed

    run([f"resume={stopped.path}", f"trainer.max_epochs={saved['epoch'] + 2}"], tmp_path)
    assert stopped.read_status()["state"] == "done"


def test_a_second_interrupt_does_not_wait_for_the_step(tmp_path: Path) -> None:
    def slowly() -> None:
        advance = EpochLoop.advance

        def slow(*args: object) -> None:
            advance(*args)
            if args[0].global_step > 60:
                Path("slow").touch()
                while not stopping.requested():
                    time.sleep(0.01)
                Path("told").touch()
                time.sleep(100)

        EpochLoop.advance = slow

    process = begin(tmp_path, before=slowly)
    wait_for(tmp_path / "slow")
    os.kill(process, signal.SIGINT)
    wait_for(tmp_path / "told")  # two that come at once count as one
    time.sleep(stopping.REPEAT_S + 0.1)
    assert os.waitpid(process, os.WNOHANG) == (0, 0)
    os.kill(process, signal.SIGINT)
    assert wait(process, limit_s=30) == 130


def test_a_validation_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    def slowly() -> None:
        stopping.VALIDATION_LIMIT_S = 0.2
        step = ImageClassifier.validation_step

        def slow(*args: object) -> None:
            step(*args)
            if args[0].global_step > 50:
                Path("slow").touch()
                time.sleep(1)

        ImageClassifier.validation_step = slow

    process = begin(tmp_path, "data.eval_batch_size=1", before=slowly)
    wait_for(tmp_path / "slow")
    os.kill(process, signal.SIGTERM)
    assert wait(process, limit_s=60) == 143
    assert checkpoint.read(only_run(tmp_path).last_checkpoint)["global_step"] > 0


def test_a_time_limit_saves_the_last_step(tmp_path: Path) -> None:
    run([*FOREVER, "trainer.max_time=00:00:00:02", "callbacks.last.every_epochs=0"], tmp_path)
    ended = only_run(tmp_path)
    steps = [int(row["step"]) for row in read_table(ended.path / "metrics.csv")]
    assert checkpoint.read(ended.last_checkpoint)["global_step"] == max(steps)
    assert ended.read_status()["state"] == "done"


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    arguments = ["model=mlp", "model.activation=identity", "data=digits", "optim=sgd", "trainer.max_epochs=1"]
    run(arguments, tmp_path)
    diverged = only_run(tmp_path)
    before = diverged.last_checkpoint.read_bytes()
    printed = run([f"resume={diverged.path}", "optim.lr=900", "trainer.max_epochs=9"], tmp_path, code=4)
    (line,) = [line for line in printed.splitlines() if line.startswith("error:")]
    for told in ("train/loss is nan", "step 1", "learning rate 900", "gradient norm nan"):
        assert told in line
    assert diverged.last_checkpoint.read_bytes() == before
    weights = checkpoint.read(diverged.last_checkpoint)["state_dict"]
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert diverged.read_status()["state"] == "failed"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGUSR1, 75)]
)
def test_a_signal_before_training_ends_at_once_though_a_library_would_swallow_it(
    tmp_path: Path, number: int, code: int
) -> None:
    def swallowing() -> None:
        check = preflight._check

        def slow(config: object) -> None:
            check(config)
            with suppress(BaseException):
                os.kill(os.getpid(), number)
                time.sleep(0.1)

        preflight._check = slow

    assert wait(start(FOREVER, tmp_path, before=swallowing)) == code
    assert [file.name for file in tmp_path.iterdir()] == ["log"]


def test_what_a_library_makes_of_being_told_to_stop_counts_as_that() -> None:
    def be_told() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)

    def convert() -> None:
        with stopping.listening():
            try:
                be_told()
            except BaseException as error:
                raise UnboundLocalError("old") from error

    def swallow() -> None:
        with stopping.listening():
            with suppress(BaseException):
                be_told()
            with stopping.deferring():
                pytest.fail("training began")

    for library in (convert, swallow):
        with pytest.raises(stopping.Stopped, match="told to stop by SIGTERM") as told:
            library()
        assert told.value.code == 143
