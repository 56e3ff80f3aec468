"""Runs on full and read-only disks, with dying loader workers and damaged image files.

The full form needs Linux and the right to mount a small tmpfs: `python tests/faults/failing_disks.py` as root
or with user namespaces (`unshare --user`). The short form limits file sizes, which needs no privilege.
"""

import csv
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

from project.loggers.tensorboard_hparams import SUFFIX
from project.runs.folders import create_folder
from project.runs.provenance import git_state, versions
from project.runs.run_folder import RunFolder
from project.runs.sweep_folder import SweepFolder, create

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 240.0
EPOCHS = 45
STEPS = 29 * EPOCHS
LONG = [
    *("model=mlp", "data=synthetic", "trainer.accelerator=cpu", f"trainer.max_epochs={EPOCHS}"),
    *("trainer.log_every_n_steps=5", "callbacks.early_stopping.patience=1000"),
    "+callbacks.pace={_target_:minimum_epoch_time.Pace,seconds:0.15}",
]
"""Run of several seconds, as files are written every second and must be written while the disk is full."""
NO_CHECKPOINTS = ["~callbacks.best", "callbacks.last.every_epochs=1000", "callbacks.last.every_minutes=1000"]
"""No checkpoints before the end."""


def start_anew(arguments: tuple[str, ...], cwd: Path, output: int) -> subprocess.Popen:
    """Start `scripts/train.py` as users do."""
    paths = [str(ROOT / "src"), str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        stdout=output,
        stderr=subprocess.STDOUT,
    )


class Command:
    """Process of `scripts/train.py` and its output."""

    begin: Callable[..., subprocess.Popen] = staticmethod(start_anew)
    """How its process is started."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self.cwd = cwd
        reading, writing = os.pipe()
        self._output = os.fdopen(reading)
        try:
            self.process = self.begin(arguments, cwd, writing)
        finally:
            os.close(writing)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._output:
            self.lines.append(line.rstrip())

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def epoch(self) -> int:
        """Last epoch in the output."""
        shown = (line.split()[0].partition("/") for line in list(self.lines) if line.strip())
        return max((int(number) for number, slash, _ in shown if slash and number.isdigit()), default=0)

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition while the command runs."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.text}"
            assert time.monotonic() < deadline, self.text
            time.sleep(0.01)

    def end(self, code: int) -> str:
        """Wait for the end, and return the output."""
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
        self._reader.join(10)
        self._output.close()
        assert self.process.returncode == code, f"exit code {self.process.returncode}:\n{self.text}"
        assert "Traceback" not in self.text, self.text
        return self.text

    @property
    def run(self) -> RunFolder:
        """The only run folder."""
        (folder,) = (file.parent for file in self.cwd.glob("outputs/*/*/.hydra"))
        return RunFolder(folder)

    def begun(self) -> bool:
        """True if all files of the run exist."""
        return self.epoch >= 12 and (self.run.path / "metrics.csv").exists()

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.lines if line.startswith("warning:")]

    @property
    def warned(self) -> set[str]:
        """Names of the files in warnings, without suffixes."""
        return {Path(line.split(": ")[1]).name.partition(".")[0] for line in self.warnings}

    @property
    def errors(self) -> list[str]:
        return [line for line in self.lines if line.startswith("error:")]


class LimitedFiles:
    """Limit on file sizes (RLIMIT_FSIZE): the kernel writes up to the limit, then fails."""

    reason = "File too large"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process = 0

    def fill(self) -> None:
        """Set a limit first inside records and rows, then below all files."""
        sizes = [file.stat().st_size for file in self.path.glob("outputs/*/*/events*")]
        self._limit(max(sizes, default=0) + 37)
        time.sleep(1.2)
        self._limit(300)

    def free(self) -> None:
        self._limit(resource.RLIM_INFINITY)

    def _limit(self, size: int) -> None:
        resource.prlimit(self.process, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


class SmallDisk:
    """Small tmpfs, filled by one file."""

    reason = "No space left on device"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process = 0

    def fill(self) -> None:
        with suppress(OSError), (self.path / "filler").open("ab", buffering=0) as stream:
            while True:
                stream.write(bytes(1024))

    def free(self) -> None:
        (self.path / "filler").unlink()

    def remount(self, how: str) -> None:
        deadline = time.monotonic() + 30
        while subprocess.run(["mount", "-o", f"remount,{how}", self.path], capture_output=True).returncode:
            assert time.monotonic() < deadline, (
                f"cannot remount {self.path} {how}"
            )  # a file is open for writing


@contextmanager
def small_disk(megabytes: int) -> Iterator[SmallDisk]:
    """Mount a tmpfs."""
    with tempfile.TemporaryDirectory() as path:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", path], check=True)
        try:
            yield SmallDisk(Path(path))
        finally:
            subprocess.run(["umount", "-l", path], check=True)


Disk = LimitedFiles | SmallDisk


def full_for_a_while(disk: Disk) -> str:
    """Fill the disk for many epochs: events, table, log and status; only TensorBoard's curves end."""
    command = Command(*LONG, *NO_CHECKPOINTS, cwd=disk.path)
    disk.process = command.process.pid
    command.until(command.begun)
    disk.fill()
    first = command.epoch
    command.until(lambda: {"events", "metrics"} <= command.warned and command.epoch >= first + 5)
    last, run = command.epoch, command.run
    rows, (events, torn) = table_of(run), events_of(run)
    assert rows, "the table is one still"
    assert len(rows) < command.epoch * 6, "no row was refused"
    disk.free()
    shown = command.end(0)
    check_complete(run, shown)
    kinds = command.warned
    assert kinds <= {"events", "metrics", "train", "status"}, kinds
    assert len(command.warnings) == len(kinds), "one line a kind of file"
    assert all(disk.reason in line for line in command.warnings), command.warnings
    return (
        f"{type(disk).__name__}: full from epoch {first} to {last}: {len(rows)} rows and "
        f"{len(events)} events (+ {torn} bytes) then, all rows in the end; {len(kinds)} warnings, exit 0"
    )


def check_complete(run: RunFolder, shown: str) -> None:
    """Check that table and log have every step and epoch once, and the events the first steps."""
    status = run.read_status()
    assert status["state"] == "done"
    assert f"{status['metrics']['test/acc']:8.4f}  of 512 images" in shown
    steps = [int(row["step"]) for row in table_of(run)]
    assert steps == sorted(set(steps))
    trained = [int(row["step"]) for row in table_of(run) if row["train/loss"]]
    gaps = {later - earlier for earlier, later in pairwise(trained)}
    assert len(trained) >= STEPS // 5, f"{len(trained)} rows"
    assert max(gaps) <= 5, f"rows are missing: {gaps}"
    curve = [step for step, tag in events_of(run)[0] if tag == "train/loss"]
    assert curve
    assert curve == trained[: len(curve)], "none is repeated, none is missing before the last"
    log = (run.path / "train.log").read_text()
    for epoch in range(1, EPOCHS + 1):
        assert log.count(f" {epoch}/{EPOCHS} ") == 1, f"epoch {epoch} in the log:\n{log}"


def full_to_the_end(disk: Disk) -> str:
    """Fill the disk until the end: expect an error for the unrecorded result, and a failure."""
    command = Command(*LONG, *NO_CHECKPOINTS, cwd=disk.path)
    disk.process = command.process.pid
    command.until(command.begun)
    disk.fill()
    try:
        command.process.wait(PATIENCE_S)
        assert table_of(command.run)
    finally:
        disk.free() if isinstance(disk, SmallDisk) else None
    command.end(1)
    assert len(command.errors) == 1, command.text
    assert "could not be saved" in command.errors[0], command.text  # the last checkpoint
    return f"{type(disk).__name__}: full from its middle to the end: table whole, exit 1, one line"


def full_at_a_checkpoint(disk: Disk) -> str:
    """Fill the disk before a checkpoint: the previous one remains, one error line, and the run resumes."""
    command = Command(*LONG, cwd=disk.path)
    disk.process = command.process.pid
    command.until(lambda: command.begun() and command.run.last_checkpoint.exists())
    disk.fill()
    command.end(1)
    assert "could not be saved" in command.errors[0], command.text
    assert len(command.errors) == 1, command.text
    if isinstance(disk, SmallDisk):
        disk.free()
    found = command.run.newest_checkpoint()
    assert found.path is not None
    assert not found.damaged
    epoch = loaded(found.path)["epoch"] + 1
    again = Command("resume=last", cwd=disk.path)
    again.end(0)
    assert command.run.read_status()["state"] == "done"
    assert again.epoch == EPOCHS
    return (
        f"{type(disk).__name__}: full at a checkpoint: exit 1, one line, {found.path.name} of epoch {epoch} "
        "loads, the run went on from it to the end"
    )


def loaded(path: Path) -> dict:
    from project.runs.checkpoint_files import read

    return read(path)


def read_only_in_mid_run() -> str:
    """Remount the disk read-only during a run: an error at a checkpoint, or at the end without any."""
    told = []
    for extra, line in (
        ([], "could not be saved (Read-only"),
        (NO_CHECKPOINTS, "could not be saved (Read-only"),
    ):
        with small_disk(8) as disk:
            command = Command(*LONG, *extra, cwd=disk.path)
            command.until(command.begun)
            disk.remount("ro")
            command.end(1)
            disk.remount("rw")
            assert line in command.errors[0], command.text
            assert table_of(command.run)
            if not extra:  # otherwise there is no checkpoint yet
                assert loaded(command.run.newest_checkpoint().path)  # type: ignore[arg-type]
            told.append(line)
    return f"read-only in mid-run: exit 1, {told[0]}; table and checkpoint whole"


def refused_at_the_start() -> str:
    """Start on a full or read-only disk, or with a file as folder: one line, exit code 2, nothing left."""
    seconds = []
    with small_disk(1) as disk:
        for how in ("full", "read-only", "file", "data", "image_cache"):
            undo = _spoil(disk, how)
            before = sorted(disk.path.rglob("*"))
            began = time.monotonic()
            command = Command(
                "data=mnist", f"paths.data={disk.path}/sets", f"paths.outputs={disk.path}/runs/of", cwd=ROOT
            )
            command.end(2)
            seconds.append(time.monotonic() - began)
            assert len(command.lines) == len(command.errors) <= 3, command.text
            key = {"data": "paths.data", "image_cache": "paths.image_cache", "read-only": "paths."}.get(
                how, "paths.outputs"
            )
            assert command.lines[0].startswith(f"error: {key}"), (how, command.text)
            assert sorted(disk.path.rglob("*")) == before, f"{how}: something is left"
            undo()
    took = f"{min(seconds):.1f} to {max(seconds):.1f} s"
    return f"refused at the start in 5 ways: exit 2, one line, nothing left, {took}"


def _spoil(disk: SmallDisk, how: str) -> Callable[[], object]:
    if how == "full":
        (disk.path / "sets").mkdir()
        disk.fill()
        return lambda: (disk.free(), (disk.path / "sets").rmdir())
    if how == "read-only":
        disk.remount("ro")
        return lambda: disk.remount("rw")
    file = disk.path / {"file": "runs", "data": "sets", "image_cache": "sets/image_cache"}[how]
    file.parent.mkdir(exist_ok=True)
    file.touch()
    return lambda: (file.unlink(), shutil.rmtree(disk.path / "sets", ignore_errors=True))


def images_kept_nowhere() -> str:
    """Start without space for the image cache: one line, and the run continues."""
    with small_disk(1) as disk, tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder) / "images", count=1500, side=32)
        command = Command(*of_images(Path(folder)), f"paths.image_cache={disk.path}", cwd=Path(folder))
        shown = command.end(0)
        assert "decoded images cannot be cached" in shown, shown
        assert not list(disk.path.glob("*.images"))
    return "cached images without room: exit 0, told in a line"


def sweep_on_a_full_disk() -> str:
    """Fill the disk of a sweep: failed jobs are reported, and done when the sweep is resumed."""
    with small_disk(40) as disk:
        command = Command(
            "-m",
            *(text for text in LONG if "max_epochs" not in text),
            "trainer.max_epochs=12",
            "seed=range(0,6)",
            "hydra.launcher.jobs=2",
            cwd=disk.path,
        )
        command.until(lambda: "(1 of 6)" in command.text)
        disk.fill()
        shown = command.end(1)
        disk.free()
        (record,) = disk.path.glob("outputs/sweep/*/sweep.json")
        sweep = SweepFolder(record.parent)
        done = [job.number for job in sweep.ledger.read().values() if job.state == "done"]
        assert "jobs failed" in shown or "could not be recorded" in shown, shown
        again = Command("resume=last", "retry_failed=true", cwd=disk.path)
        again.end(0)
        jobs = sweep.ledger.read().values()
        assert [job.state for job in jobs] == ["done"] * 6
        assert all(job.value for job in jobs)
        assert len({tuple(row) for row in csv.reader((sweep.path / "jobs.csv").open())}) == 7
    return f"a sweep of 6 whose disk fills: {len(done)} done and on record, exit 1; all 6 after resume"


def damaged_images() -> str:
    """Damage images: at most ten are named, and the exit code is 3."""
    told = []
    with tempfile.TemporaryDirectory() as folder:
        files = make_images(Path(folder) / "images", count=1500)
        for victims in (1, 12):
            for file in files[1 :: len(files) // victims][:victims]:
                file.write_bytes(file.read_bytes()[:60])
            for extra in ([], ["data.memory_budget_mb=0", "data.num_workers=2"]):
                command = Command(*of_images(Path(folder)), *extra, cwd=Path(folder))
                command.end(3)
                named = [line for line in command.errors if "is damaged or not an image" in line]
                assert named, command.text
                assert len(named) <= 10, command.text
                assert extra or len(named) >= victims // 2, command.text  # the others may be test images
                told.append(f"{len(named)} of {victims}{' streamed' if extra else ''}")
    return f"damaged among 1,500 images: exit 3, named {', '.join(told)}"


def lost_workers() -> str:
    """Kill or stop a loader worker: the run ends in time, and no worker remains."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder) / "images", count=1500)
        streamed = ["data.memory_budget_mb=0", "data.num_workers=2", "data.timeout_s=5"]
        for number in (signal.SIGKILL, signal.SIGSTOP):
            command = Command(*of_images(Path(folder), epochs=10_000), *streamed, cwd=Path(folder))
            command.until(lambda command=command: command.epoch >= 2)
            workers = children_of(command.process.pid)
            assert len(workers) >= 2, workers
            began = time.monotonic()
            os.kill(workers[0], number)
            command.end(1)
            seconds.append(time.monotonic() - began)
            key = "num_workers" if number == signal.SIGKILL else "timeout_s"
            assert [line.partition(":")[2].split(":")[0].strip() for line in command.errors] == [
                f"data.{key}"
            ], command.text
            wait_until_gone(workers)
            shutil.rmtree(Path(folder) / "outputs")
    took = f"{seconds[0]:.1f}, {seconds[1]:.1f} s"
    return f"a worker of two killed, stopped (data.timeout_s=5): exit 1 after {took}, none left"


def of_images(folder: Path, epochs: int = 2) -> list[str]:
    return [
        *("model=mlp", "data=image_folder", f"data.path={folder}/images", "trainer.accelerator=cpu"),
        *(f"trainer.max_epochs={epochs}", "data.mean=[0.5]", "data.std=[0.5]"),
    ]


def make_images(folder: Path, *, count: int, side: int = 8) -> list[Path]:
    """Write two classes of color PNGs, 3 kB each for a side of 32 pixels."""
    import numpy as np
    from PIL import Image

    draws = np.random.default_rng(0)
    files = [folder / f"{'ab'[number % 2]}" / f"{number}.png" for number in range(count)]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(file)
    return files


def claims(rounds: int = 50, sweeps: int = 5, processes: int = 8) -> str:
    """Start processes simultaneously: each gets its own run folder or, in some rounds, sweep folder."""
    context = get_context("fork")
    git_state(), versions()  # cached for the forks, which then start closer together
    with tempfile.TemporaryDirectory() as folder:
        conf = Path(folder) / "conf"
        conf.mkdir()
        (conf / "train.yaml").write_text("seed: 1\n")
        for number in range(rounds):
            start, found = context.Barrier(processes), context.SimpleQueue()
            wanted = Path(folder) / "outputs" / str(number)

            def one(start=start, found=found, wanted=wanted, with_sweep=number < sweeps) -> None:
                start.wait()
                run = create_folder(wanted / "run")
                (run / "mine").write_text(str(os.getpid()))
                sweep = ""
                if with_sweep:
                    sweep = str(create(str(wanted / "sweep"), [conf], [str(os.getpid())]).path)
                found.put((str(run), sweep, os.getpid()))

            children = [context.Process(target=one) for _ in range(processes)]
            for child in children:
                child.start()
            told = [found.get() for _ in children]
            for child in children:
                child.join()
                assert child.exitcode == 0
            assert len({run for run, _, _ in told}) == processes
            assert len({sweep for _, sweep, _ in told}) == (processes if number < sweeps else 1)
            for run, sweep, pid in told:
                assert Path(run, "mine").read_text() == str(pid)
                assert not sweep or SweepFolder(sweep).read_record()["overrides"] == [str(pid)]
            assert {path.name for path in Path(told[0][0]).iterdir()} == {"mine"}, "no probe is left"
    return (
        f"{rounds} rounds of {processes} processes claiming a run's folder, {sweeps} a sweep's: none shared"
    )


def table_of(run: RunFolder) -> list[dict[str, str]]:
    """Return the rows of a table of metrics; fail for a damaged file."""
    with (run.path / "metrics.csv").open(newline="") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
    assert reader.fieldnames
    assert "step" in reader.fieldnames
    for row in rows:
        assert None not in row, row
        assert None not in row.values(), row
        assert row["step"].isdigit(), row
    return rows


LAYOUT = "custom_scalars__config__"
"""Tag of the layout of TensorBoard's Custom Scalars page."""


def events_of(run: RunFolder) -> tuple[list[tuple[int, str]], int]:
    """Return step and tag of each scalar or image, and the size of an incomplete last record [bytes].

    Results have a file of their own, and the layout of charts is written whenever a tag is new.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    found: list[tuple[int, str]] = []
    rest = b""
    for file in sorted(run.path.glob("events.out.tfevents.*")):
        if file.name.endswith(SUFFIX):
            continue
        assert not rest, "a file after one that is not whole"
        rest = file.read_bytes()
        while len(rest) >= 12:
            (length,) = struct.unpack("<Q", rest[:8])
            if len(rest) < length + 16:
                break
            data = rest[12 : 12 + length]
            assert struct.unpack("<I", rest[8:12])[0] == masked_crc32c(rest[:8])
            assert struct.unpack("<I", rest[12 + length : 16 + length])[0] == masked_crc32c(data)
            event = Event.FromString(data)
            found += [(event.step, value.tag) for value in event.summary.value if value.tag != LAYOUT]
            rest = rest[16 + length :]
    return found, len(rest)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until_gone(pids: list[int], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if _lives(pid)]:
        assert time.monotonic() < deadline, f"left: {left}"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def full() -> str:
    """Run all cases on small disks.

    Returns:
        A line per case.
    """
    if os.geteuid() != 0:  # a user namespace allows mounts
        return subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", sys.executable, __file__],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    found = []
    for trial in (full_for_a_while, full_to_the_end, full_at_a_checkpoint):
        with small_disk(4 if trial is not full_at_a_checkpoint else 8) as disk:
            found.append(trial(disk))
        with tempfile.TemporaryDirectory() as folder:
            found.append(trial(LimitedFiles(Path(folder))))
    found += [read_only_in_mid_run(), refused_at_the_start(), images_kept_nowhere()]
    found += [sweep_on_a_full_disk(), damaged_images(), lost_workers(), claims()]
    return "\n".join(found)


if __name__ == "__main__":
    print(full())
