"""Full disks (short form of `failing_disks.py`): file-size limits, and system calls that fail."""

import errno
import logging
import os
import shutil
import signal
import time
import traceback
from pathlib import Path

import pytest
import torch
from failing_disks import (
    Command,
    LimitedFiles,
    children_of,
    claims,
    events_of,
    full_at_a_checkpoint,
    full_for_a_while,
    table_of,
    wait_until_gone,
)
from forked_command import ForkedCommand
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

from project.datamodules.image_folder import ImageFolder
from project.datamodules.loading.loader import FileImages
from project.datamodules.loading.prefetch import WorkerError, _kill_workers, explain_worker_failures
from project.datamodules.mnist import FOLDER, MNIST
from project.errors import DataError, InputError
from project.loggers.csv import MetricsCSV
from project.loggers.tensorboard import TensorBoard
from project.runs.folders import create_folder
from project.runs.run_folder import RunFolder, UnrecordedError
from project.runs.sweep_jobs import Job, Ledger
from project.runtime import atomic_files
from project.runtime.atomic_files import LogFile


class Disk:
    """Full disk: `os.pwrite` and `os.write` write a part and then fail, and no file can be made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        self.number = number
        self.monkeypatch = monkeypatch
        self.calls = 0

    def fail(self) -> None:
        pwrite, write = os.pwrite, os.write

        def refuse(*_: object, **__: object) -> int:
            raise OSError(self.number, os.strerror(self.number))

        def part(descriptor: int, data: bytes, position: int) -> int:
            self.calls += 1
            return pwrite(descriptor, bytes(data)[:7], position) if self.calls % 2 else refuse()

        def part_at_end(descriptor: int, data: bytes) -> int:
            self.calls += 1
            return write(descriptor, bytes(data)[:7]) if self.calls % 2 else refuse()

        self.monkeypatch.setattr(os, "pwrite", part)
        self.monkeypatch.setattr(os, "write", part_at_end)
        self.monkeypatch.setattr(os, "fsync", refuse)
        self.monkeypatch.setattr(Path, "write_bytes", refuse)
        self.monkeypatch.setattr(Path, "replace", refuse)

    def mend(self) -> None:
        self.monkeypatch.undo()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_failed_writes_are_repeated_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    number: int,
) -> None:
    run, disk = RunFolder(tmp_path), Disk(monkeypatch, number)
    table = MetricsCSV(str(tmp_path / "metrics.csv"))
    ledger, lines = Ledger(tmp_path / "jobs.jsonl"), LogFile(str(tmp_path / "train.log"))

    def work(step: int) -> None:
        atomic_files.RETRY_S, was = 0.0, atomic_files.RETRY_S
        table.log_metrics({"train/loss": step / 8}, step=step)
        table.save()
        run.write_status(step=step)
        ledger.write(Job(step, [], [], str(step)))
        lines.emit(logging.makeLogRecord({"msg": f"line number {step}"}))
        atomic_files.RETRY_S = was

    work(1)
    disk.fail()
    for step in (2, 3, 4):
        work(step)
    assert {int(row["step"]) for row in table_of(run)} <= {1, 2, 3, 4}, "it is a table"
    assert (run.read_status()["step"], sorted(ledger.read())) == (4, [1, 2, 3, 4])
    assert ledger.outage == os.strerror(number)
    with pytest.raises(UnrecordedError, match=rf"status.json: .*not be recorded \({os.strerror(number)}\)"):
        run.require_recorded()
    disk.mend()
    work(5)
    table.finalize("success")
    lines.close()
    run.require_recorded()
    assert [int(row["step"]) for row in table_of(run)] == [1, 2, 3, 4, 5]
    assert (tmp_path / "train.log").read_text().split() == [
        word for step in range(1, 6) for word in ("line", "number", str(step))
    ]
    assert RunFolder(tmp_path).read_status() == {"step": 5}
    assert (sorted(Ledger(ledger.file).read()), ledger.outage) == ([1, 2, 3, 4, 5], "")
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sorted(Path(line.split(": ")[1]).name.partition(".")[0] for line in told) == [
        *("jobs", "metrics", "status"),
    ]
    assert all(f": {os.strerror(number)}; " in line for line in told), told
    assert capfd.readouterr().err.count("train.log: ") == 1
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_full_disk_ends_tensorboards_curves_with_one_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    number: int,
) -> None:
    board = TensorBoard(str(tmp_path))
    board.log_metrics({"train/loss": 1.0}, step=1)
    board.save()

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(LocalFileSystem, "append", refuse)
    for step in (2, 3):
        board.log_metrics({"train/loss": 1.0}, step=step)
        assert board.state_dict()["step"] == step
    monkeypatch.undo()
    board.log_metrics({"train/loss": 1.0}, step=4)
    board.finalize("success")
    assert events_of(RunFolder(tmp_path)) == ([(1, "train/loss")], 0)
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.endswith(f": {os.strerror(number)}; no more TensorBoard events")
    assert "Traceback" not in capfd.readouterr().err


def test_a_status_is_overwritten_in_place_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    run.write_status(state="running", note="x" * 50)

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert run.write_status(state="done", note="")
    assert RunFolder(tmp_path).read_status() == {"state": "done", "note": ""}


@pytest.fixture
def _forking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start commands as forks of this process, to save the imports."""

    def fork(arguments: tuple[str, ...], cwd: Path, output: int) -> ForkedCommand:
        return ForkedCommand(arguments, cwd, streams=(output, output))

    monkeypatch.setattr(Command, "begin", staticmethod(fork))


@pytest.mark.usefixtures("_forking")
def test_a_run_continues_while_its_files_cannot_grow(tmp_path: Path) -> None:
    full_for_a_while(LimitedFiles(tmp_path))


@pytest.mark.usefixtures("_forking")
def test_a_checkpoint_without_space_keeps_the_previous_one(tmp_path: Path) -> None:
    full_at_a_checkpoint(LimitedFiles(tmp_path))


def test_a_full_run_folder_is_refused_and_nothing_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, errno.ENOSPC)
    disk.fail()
    with pytest.raises(InputError, match=r"paths\.outputs: .*No space left on device"):
        create_folder(tmp_path / "outputs" / "name" / "run")
    assert not list(tmp_path.iterdir())


def test_simultaneous_processes_share_no_folder() -> None:
    claims(rounds=5, sweeps=0, processes=8)


def decode(file: str) -> torch.Tensor:
    if file == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif file == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif file == "hangs":
        time.sleep(600)
    return torch.zeros((1, 2, 2), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("killed", r"data\.num_workers: a worker process ended.*(killed|exited)"),
        ("stopped", r"data\.timeout_s: .*timed out after 1"),
        ("hangs", r"data\.timeout_s: .*timed out after 1"),
    ],
)
def test_a_lost_worker_is_reported_in_time(fault: str, line: str) -> None:
    """Run in a fork, as torch raises the error of a killed worker in whatever code is running."""
    if not (pid := os.fork()):
        code = 1
        try:
            lose_a_worker(fault, line)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def lose_a_worker(fault: str, line: str) -> None:
    files = [*["good"] * 300, fault, *["good"] * 300]
    images = FileImages(files, torch.zeros(601, dtype=torch.long), decode, (1, 2, 2), 2, timeout_s=1)
    began = time.monotonic()
    with pytest.raises(WorkerError, match=line) as raised, explain_worker_failures():
        images.decode_all()
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 1
    assert time.monotonic() - began < 60
    workers = children_of(os.getpid())
    _kill_workers(os.getpid())  # as at the end of the process
    wait_until_gone(workers)


def test_all_damaged_images_are_named_at_once(image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder, tmp_path / "images")
    files = sorted(tmp_path.glob("images/train/*/*.jpg"))
    for count, lines in ((3, 3), (20, 11)):
        for file in files[1 : count + 1]:
            file.write_bytes(file.read_bytes()[:100])
        data = ImageFolder(str(tmp_path / "images"), input_shape=(3, 12, 10), num_classes=3)
        with pytest.raises(DataError, match=rf"{files[1].name} is damaged or not an image") as raised:
            data.setup("fit")
        assert len(str(raised.value).splitlines()) == lines
    for file in (tmp_path / "images" / "train" / "bee").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"no image files in class folder .*bee"):
        data.setup("fit")


def test_labels_outside_mnist_are_refused(mnist_root: Path, tmp_path: Path) -> None:
    shutil.copytree(mnist_root, tmp_path / "data")
    file = tmp_path / "data" / FOLDER / "train-labels-idx1-ubyte"
    labels = bytearray(file.read_bytes())
    labels[20] = 77
    file.write_bytes(labels)
    data = MNIST(str(tmp_path / "data"), input_shape=(1, 28, 28), num_classes=10)
    with pytest.raises(DataError, match=r"labels \[200\] up to 77 \(expected .*0 to 9\)"):
        data.setup("fit")
