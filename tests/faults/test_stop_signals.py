"""Stops of a single process: signals, a time limit, a NaN loss."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from conftest import read_table
from forked_attempts import ROOT, only_run, run, start, wait
from lightning.pytorch.callbacks import Callback
from matplotlib.figure import Figure
from small_training import make_data, make_module, make_trainer
from written_runs import write_run

from project.callbacks.checkpointing import LastCheckpoint
from project.callbacks.ema import EMA
from project.config import preflight
from project.inference.evaluate import output_files
from project.loggers.csv import MetricsCSV
from project.modules.classifier import ImageClassifier
from project.modules.optim.schedules import plateau
from project.reporting import compare as compare_command
from project.reporting.compare import write_csv
from project.reporting.compare_plot import draw
from project.runs import checkpoint_files
from project.runs.comparison import compare
from project.runtime import signals
from project.runtime.output_files import atomic_output
from project.training.epoch_loop import EpochLoop, StopDuringValidation

FOREVER = [
    *("model=mlp", "model.widths=[16]", "data=digits", "data.batch_size=32", "trainer.max_epochs=100000"),
    *("trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "~callbacks.early_stopping"),
]


def begin(cwd: Path, *more: str, before: Callable[[], object] | None = None) -> int:
    """Start an endless run, and return after some steps."""
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
def test_a_signal_saves_the_current_step(tmp_path: Path, number: int, code: int) -> None:
    process = begin(tmp_path, "callbacks.last.every_epochs=0")  # no other checkpoint is written
    os.kill(process, number)
    assert wait(process) == code

    stopped = only_run(tmp_path)
    saved = checkpoint_files.read(stopped.last_checkpoint)
    assert saved["global_step"] == int(read_table(stopped.path / "metrics.csv")[-1]["step"]) > 0
    assert stopped.read_status()["state"] == "interrupted"
    printed = (tmp_path / "log").read_text()
    assert "continue with resume=" in printed
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
                while not signals.requested():
                    time.sleep(0.01)
                Path("told").touch()
                time.sleep(100)

        EpochLoop.advance = slow

    process = begin(tmp_path, before=slowly)
    wait_for(tmp_path / "slow")
    os.kill(process, signal.SIGINT)
    wait_for(tmp_path / "told")  # simultaneous signals count as one
    time.sleep(signals.REPEAT_S + 0.1)
    assert os.waitpid(process, os.WNOHANG) == (0, 0)
    os.kill(process, signal.SIGINT)
    assert wait(process, limit_s=30) == 130


def test_a_signal_stops_a_validation_at_its_next_batch(tmp_path: Path) -> None:
    def slowly() -> None:
        step = ImageClassifier.validation_step

        def slow(*args: object) -> None:
            step(*args)
            if args[0].global_step > 50:
                Path("slow").touch()
                time.sleep(1)

        ImageClassifier.validation_step = slow

    more = ("data.eval_batch_size=1", "callbacks.last.every_epochs=0")  # no other checkpoint is written
    process = begin(tmp_path, *more, before=slowly)
    wait_for(tmp_path / "slow")
    os.kill(process, signal.SIGTERM)
    assert wait(process, limit_s=60) == 143
    stopped = only_run(tmp_path)
    steps = [int(row["step"]) for row in read_table(stopped.path / "metrics.csv")]
    assert checkpoint_files.read(stopped.last_checkpoint)["global_step"] == steps[-1] > 50
    assert stopped.read_status()["state"] == "interrupted"


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({"check_val_every_n_epoch": 1}, 14),
        ({"val_check_interval": 3}, 10),
        ({"val_check_interval": 3, "accumulate_grad_batches": 2}, 6),  # finishes the step of 2 batches first
    ],
)
def test_a_stopped_validation_is_repeated(tmp_path: Path, options: dict[str, int], step: int) -> None:
    class Signal(Callback):
        """Send a stop signal within the first validation of the second epoch."""

        def on_validation_batch_start(self, trainer: L.Trainer, *args: object) -> None:
            if trainer.current_epoch == 1 and trainer.state.fn == "fit":
                os.kill(os.getpid(), signal.SIGTERM)

    def fit(folder: Path, *callbacks: Callback, resume: Path | None = None) -> ImageClassifier:
        module = make_module()
        module.scheduler_factory = partial(plateau, monitor="val/loss", mode="max", factor=0.5, patience=0)
        trainer = make_trainer(
            folder,
            [EMA(0.9), LastCheckpoint(str(folder)), StopDuringValidation(), *callbacks],
            MetricsCSV(str(folder / "metrics.csv")),
            max_epochs=4,
            **options,
        )
        with signals.raise_on_signal():
            data = make_data(eval_batch_size=2)
            trainer.fit(module, data, ckpt_path=resume, weights_only=True)
        return module

    whole = fit(tmp_path / "whole")
    with pytest.raises(signals.Stopped, match="stopped by SIGTERM"):
        fit(tmp_path, Signal())
    assert checkpoint_files.read(tmp_path / "last.ckpt")["global_step"] == step
    resumed = fit(tmp_path, resume=tmp_path / "last.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert read_table(tmp_path / "metrics.csv") == read_table(tmp_path / "whole" / "metrics.csv")


def test_a_second_interrupt_within_a_save_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"state_dict": {str(number): torch.randn(1000) for number in range(3)}}
    last, write = tmp_path / "last.ckpt", checkpoint_files._HashingStream.write
    writes = told_at = 0

    def counted(stream: checkpoint_files._HashingStream, data: bytes) -> int:
        nonlocal writes
        writes += 1
        if writes == told_at:
            os.kill(os.getpid(), signal.SIGINT)
        return write(stream, data)

    def save() -> None:
        nonlocal writes
        writes = 0
        with signals.raise_on_signal(), signals.defer_signals():
            if told_at:
                os.kill(os.getpid(), signal.SIGINT)
            checkpoint_files.write(last, lambda stream: checkpoint_files.save(content, stream), 12_000)

    monkeypatch.setattr(signals, "REPEAT_S", 0.0)
    monkeypatch.setattr(checkpoint_files._HashingStream, "write", counted)
    save()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert writes > 10
    for told_at in range(1, writes + 1):
        with pytest.raises(signals.Stopped, match="stopped by SIGINT") as told:
            save()
        assert told.value.code == 130
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before, told_at


def test_a_time_limit_saves_the_last_step(tmp_path: Path) -> None:
    run([*FOREVER, "trainer.max_time=00:00:00:02", "callbacks.last.every_epochs=0"], tmp_path)
    ended = only_run(tmp_path)
    steps = [int(row["step"]) for row in read_table(ended.path / "metrics.csv")]
    assert checkpoint_files.read(ended.last_checkpoint)["global_step"] == max(steps)
    assert ended.read_status()["state"] == "done"


def test_a_nan_loss_ends_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    arguments = ["model=mlp", "model.activation=identity", "data=digits", "optim=sgd", "trainer.max_epochs=1"]
    run(arguments, tmp_path)
    diverged = only_run(tmp_path)
    before = diverged.last_checkpoint.read_bytes()
    printed = run([f"resume={diverged.path}", "optim.lr=900", "trainer.max_epochs=9"], tmp_path, code=4)
    (line,) = [line for line in printed.splitlines() if line.startswith("error:")]
    for told in ("train/loss is nan", "step 1", "learning rate 900", "gradient norm nan"):
        assert told in line
    assert diverged.last_checkpoint.read_bytes() == before
    weights = checkpoint_files.read(diverged.last_checkpoint)["state_dict"]
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert diverged.read_status()["state"] == "failed"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGUSR1, 75)]
)
def test_a_signal_before_training_exits_at_once(tmp_path: Path, number: int, code: int) -> None:
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


INTERRUPTED = """
import os, runpy, signal, sys

class Interrupt:
    def find_spec(self, name, *rest):
        if name == "omegaconf":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("script", ["compare", "evaluate", "export", "predict", "report"])
def test_an_interrupt_while_a_command_imports_is_one_line(tmp_path: Path, script: str) -> None:
    words = ["-c", INTERRUPTED, str(ROOT / "scripts" / f"{script}.py"), "run=nothing"]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_output_is_complete_or_unchanged(tmp_path: Path, number: int) -> None:
    def write(place: Path) -> None:
        place.write_bytes(b"half")
        os.kill(os.getpid(), number)

    def file(target: Path) -> None:
        with atomic_output(target) as partial:
            write(partial)

    def folder(target: Path) -> None:
        with output_files.replacing_folder(target, is_given=True) as partial:
            write(partial / "confusion.png")

    earlier = tmp_path / "evaluation"
    earlier.mkdir()
    (earlier / output_files.RESULT).write_text("{}")
    (tmp_path / "page.html").write_text("page")
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    for make, names in ((file, ("page.html", "new/page.html")), (folder, ("evaluation", "new/evaluation"))):
        for name in names:
            with pytest.raises(signals.Stopped, match=f"stopped by {signal.Signals(number).name}"):
                make(tmp_path / name)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
    assert (tmp_path / "page.html").read_text() == "page"


@pytest.mark.parametrize("wanted", ["table.csv", "picture.svg"])
def test_an_interrupted_comparison_keeps_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        write(*arguments, **options)
        os.kill(os.getpid(), signal.SIGINT)

    def make() -> None:
        (write_csv if wanted.endswith("csv") else draw)(comparison, target)

    write_run(tmp_path / "runs" / "1")
    comparison, target = compare([str(tmp_path / "runs")]), tmp_path / "to" / wanted
    owner, name = (compare_command, "escape_all") if wanted.endswith("csv") else (Figure, "savefig")
    write = getattr(owner, name)
    for earlier in (False, True):
        if earlier:
            make()
        before = [file.read_bytes() for file in tmp_path.glob("to/*")]
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, interrupted)
            with pytest.raises(signals.Stopped, match="stopped by SIGINT"):
                make()
        assert [file.read_bytes() for file in tmp_path.glob("to/*")] == before
        assert (tmp_path / "to").exists() == earlier


def test_errors_that_libraries_raise_after_a_signal_count_as_a_stop() -> None:
    def be_told() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)

    def convert() -> None:
        with signals.raise_on_signal():
            try:
                be_told()
            except BaseException as error:
                raise UnboundLocalError("old") from error

    def swallow() -> None:
        with signals.raise_on_signal():
            with suppress(BaseException):
                be_told()
            with signals.defer_signals():
                pytest.fail("training began")

    for library in (convert, swallow):
        with pytest.raises(signals.Stopped, match="stopped by SIGTERM") as told:
            library()
        assert told.value.code == 143
