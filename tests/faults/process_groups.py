"""Faults in a run on two devices: a process fails, dies, hangs or receives a signal.

In all cases all processes end soon, and the first fault is reported once and sets the exit code. A run
stopped by a signal has saved a checkpoint and can be resumed.
"""

import gc
import os
import signal
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from project.runtime.process import die_with_parent

ROOT = Path(__file__).resolve().parent.parent.parent
PAIR = (
    *("model=mlp", "logger=none", "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"),
    *("trainer.max_epochs=100000", "~callbacks.early_stopping", "paths.image_cache=null"),
)
TEST_SIZE = 64
MADE_UP = ("data=synthetic", "data.train_size=20000", f"data.test_size={TEST_SIZE}")
STREAMED = (
    *("data=image_folder", "data.path=photos", "data.memory_budget_mb=0", "data.num_workers=1"),
    *("data.batch_size=16", f"data.test_size={TEST_SIZE}"),
)
"""Data with a worker process per rank for training images, and later one for validation images."""

LIMIT_S = 15.0
"""Time within which all processes must have ended [s]."""

HANG_S = 6.0
"""`trainer.timeout_min` of a run in which a rank hangs, in seconds."""

START_LIMIT_S = 240.0
RAISED = "ArithmeticError: this rank was made to fail"
NAMES = ("raise", "SIGKILL", "SIGSTOP", "SIGTERM", "SIGINT", "SIGUSR1")
TARGETS = ("rank 0", "rank 1", "ranks", "group", "parent")
CODES = {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 75}
WITH_WORKERS = (("SIGKILL", "rank 1"), ("SIGSTOP", "rank 0"), ("SIGTERM", "group"), ("SIGINT", "group"))


@dataclass(frozen=True)
class Cell:
    """Fault of one run.

    Args:
        name: `raise`, `hang` or a signal.
        target: `rank 0`, `rank 1`, `ranks` (both), `group` (ranks and parent, as by Ctrl-C) or `parent`.
        more: overrides of the run.
        data: overrides of the data.
    """

    name: str
    target: str
    more: tuple[str, ...] = ()
    data: tuple[str, ...] = MADE_UP

    @property
    def code(self) -> int:
        """Expected exit code, negative for a signal."""
        if self.name in ("raise", "hang", "SIGSTOP"):
            return 1
        if self.name == "SIGKILL":
            return -9 if self.target in ("group", "parent") else 137
        return CODES[self.name]


CELLS = [
    *(Cell(name, target) for name in NAMES for target in ("rank 0", "rank 1", "ranks")),
    *(Cell(name, target) for name in NAMES[3:] for target in ("group", "parent")),
    *(Cell("SIGKILL", target) for target in ("group", "parent")),
    *(Cell("hang", f"rank {rank}", (f"trainer.timeout_min={HANG_S / 60}",)) for rank in (0, 1)),
    *(Cell(name, target, data=STREAMED) for name, target in WITH_WORKERS),
]


class Run:
    """Command in a new process group, forked from this process to save the imports.

    Args:
        folder: working folder, which gets the output.
        arguments: arguments of `scripts/train.py`.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.output = folder / "output.txt"
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            gc.freeze()  # a collection would copy all memory of the parent
            try:
                os.setpgid(0, 0)
                die_with_parent(parent)
                for finalizer in list(weakref.finalize._registry):
                    finalizer.detach()  # temporary folders belong to the parent
                os.chdir(folder)
                _become(self.output, arguments)
            finally:
                os._exit(99)
        os.setpgid(self.pid, self.pid)
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the command runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, limit_s: float) -> int:
        """Wait for the end of all processes, and return the exit code."""
        wait_until(lambda: self.poll() is not None and not self.processes(), limit_s, self.describe)
        assert self._code is not None
        return self._code

    def processes(self) -> list[int]:
        """Return all living processes of the group, orphans included."""
        return [pid for pid, _, group, state in _table() if group == self.pid and state != "Z"]

    def ranks(self) -> list[int]:
        """Return the processes of the ranks in order."""
        return sorted(pid for pid, parent, _, state in _table() if parent == self.pid and state != "Z")

    def end(self) -> None:
        """Kill the remaining processes."""
        if self.processes():
            os.killpg(self.pid, signal.SIGKILL)
        if self.poll() is None:
            self.wait(60)

    def text(self) -> str:
        """Return the output so far."""
        return self.output.read_text() if self.output.exists() else ""

    def describe(self) -> str:
        """Return output and processes, for a failed assertion."""
        left = [row for row in _table() if row[2] == self.pid]
        return f"exit code {self._code}, processes {left}\n{self.text()}"


def wait_until(condition: Callable[[], bool], limit_s: float, describe: Callable[[], str]) -> None:
    """Wait for a condition; after a timeout, fail with a description of the run."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"after {limit_s:.0f} s: {describe()}"
        time.sleep(0.02)


def _table() -> Iterator[tuple[int, int, int, str]]:
    """Return process id, parent, group and state of all processes."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        yield int(entry.name), int(parent), int(group), state


def _become(output: Path, arguments: tuple[str, ...]) -> None:
    """Run `python scripts/train.py` with some arguments in this process, and exit."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(file, standard)
    sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))  # noqa: SIM115
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    script = ROOT / "scripts" / "train.py"
    sys.argv = [str(script), *arguments]

    from hydra.core.global_hydra import GlobalHydra

    from project.commands import train_run
    from project.config import cli
    from project.config.config_files import conf_folder

    GlobalHydra.instance().clear()
    _arm(Path.cwd())
    cli.run(train_run, conf_folder(), "train")


def _arm(folder: Path) -> None:
    """Have a rank raise an error or hang within an epoch when a file of its name appears."""
    from project.datamodules import image_folder
    from project.training.epoch_loop import EpochLoop

    image_folder.FEW_FILES = 0
    advance = EpochLoop.advance

    def armed(self: EpochLoop, *arguments: Any) -> None:
        advance(self, *arguments)
        if (folder / f"raise {self.trainer.global_rank}").exists():
            raise ArithmeticError(RAISED.partition(": ")[2])
        if (folder / f"hang {self.trainer.global_rank}").exists():
            _wait_for_ever()

    EpochLoop.advance = armed  # type: ignore[method-assign]


def _wait_for_ever() -> None:
    threading.Lock().acquire()
    threading.Event().wait()


def preload() -> None:
    """Import the modules of runs once for all forks."""
    from project.sweeps.launchers.local import ALWAYS_NEEDED, preload

    preload(ALWAYS_NEEDED)
    import torch

    torch.set_num_threads(1)
    gc.collect()


def only_run(folder: Path) -> Path:
    """Return the only run folder below a folder."""
    (found,) = folder.glob("outputs/*/*/status.json")
    return found.parent


def try_cell(cell: Cell, folder: Path) -> float:
    """Start a run, cause the fault during training, and check the outcome.

    Returns:
        Time until all processes had ended [s].

    Raises:
        AssertionError: the outcome is not as expected.
    """
    if cell.data is STREAMED:
        _write_photos(folder / "photos")
    run = Run(folder, *PAIR, *cell.data, *cell.more)
    try:
        wait_until(
            lambda: run.poll() is not None or bool(list(folder.glob("outputs/*/*/checkpoints/*.ckpt"))),
            START_LIMIT_S,
            run.describe,
        )
        assert run.poll() is None, run.describe()
        time.sleep(0.1 + 0.3 * (os.getpid() + run.pid) % 7 / 7)  # at a varying time within an epoch
        ranks = run.ranks()
        assert len(ranks) == 2, run.describe()
        if cell.data is STREAMED:
            assert len(run.processes()) >= 5, run.describe()
        began = time.monotonic()
        _strike(cell, run, ranks, folder)
        code = run.wait(LIMIT_S + _noticing(cell))
        seconds = time.monotonic() - began
        _check(cell, run, code)
    finally:
        run.end()
    if cell.name in CODES:
        _go_on(folder)
    return seconds


def _write_photos(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    draws = np.random.default_rng(0)
    for label in range(3):
        (folder / str(label)).mkdir(parents=True)
        for number in range(100):
            pixels = draws.integers(0, 60, (8, 8, 3), dtype=np.uint8)
            pixels[:, :, label] += 180
            Image.fromarray(pixels).save(folder / str(label) / f"{number}.png")


def _noticing(cell: Cell) -> float:
    """Return the time until a fault can be noticed [s]."""
    from project.training.ddp.supervisor import MAX_STOPPED_S

    return {"SIGSTOP": MAX_STOPPED_S, "hang": HANG_S}.get(cell.name, 0.0)


def _strike(cell: Cell, run: Run, ranks: list[int], folder: Path) -> None:
    hit = {"rank 0": [0], "rank 1": [1], "ranks": [0, 1], "group": [], "parent": []}[cell.target]
    if cell.name in ("raise", "hang"):
        for rank in hit:
            (folder / f"{cell.name} {rank}").touch()
        return
    number = signal.Signals[cell.name]
    if cell.target == "group":
        os.killpg(run.pid, number)
    elif cell.target == "parent":
        os.kill(run.pid, number)
    for rank in hit:
        os.kill(ranks[rank], number)


def _check(cell: Cell, run: Run, code: int) -> None:
    from project.training.ddp.supervisor import MAX_STOPPED_S

    text = run.text()
    assert code == cell.code, f"{cell}: exit code {code} instead of {cell.code}\n{text}"
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    rank = cell.target if cell.target.startswith("rank ") else r"rank"
    if cell.name == "raise":
        assert text.count("Traceback (most recent call last)") == 1, text
        assert text.count(RAISED) == 2, text  # in the traceback and in the error line
        assert len(errors) == 1, text
        assert errors[0].startswith(f"error: {rank}"), text
        assert errors[0].endswith(f"of 2: {RAISED}"), text
    elif cell.name == "hang":
        assert len(errors) == 1, text
        assert errors[0].startswith(f"error: rank {1 - int(rank[-1])} of 2 timed out waiting"), text
        assert f"for the others ({rank} was in File " in errors[0], text
        assert text.count("in _wait_for_ever") == 1, text
        assert "Traceback" not in text, text
    elif code > 0:
        assert "Traceback" not in text, text
        assert "onnection" not in text, text
    if cell.name == "SIGKILL" and code > 0:
        assert len(errors) == 1, text
        assert errors[0].startswith(f"error: {rank}"), text
        assert "of 2 was killed by SIGKILL" in errors[0], text
    if cell.name == "SIGSTOP":
        assert len(errors) == 1, text
        assert errors[0].startswith(f"error: {rank}"), text
        assert f"was stopped for {MAX_STOPPED_S:.0f} s" in errors[0], text
    if cell.name in CODES:
        assert errors == [], text
        assert text.count("continue with resume=") == 1, text
    state = _status(only_run(run.folder))["state"]
    wanted = "interrupted" if cell.name in CODES else "running" if code < 0 else "failed"
    assert state == wanted, f"{cell}: the status says {state}\n{text}"


def _status(run: Path) -> dict[str, Any]:
    from project.runs.run_folder import RunFolder

    return RunFolder(run).read_status()


def _go_on(folder: Path) -> None:
    """Check that a stopped run has a valid checkpoint of its last step, and resume it."""
    from project.runs import checkpoint_files as checkpoint
    from project.runs.run_folder import RunFolder

    run = RunFolder(only_run(folder))
    newest = run.newest_checkpoint()
    assert newest.path is not None, newest
    saved = checkpoint.read(newest.path)
    batch = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"]
    again = Run(folder, f"resume={run.path}", f"trainer.max_epochs={saved['epoch'] + 1}")
    try:
        code = again.wait(START_LIMIT_S)
        assert code == 0, f"resumed after batch {batch}: {again.describe()}"
    finally:
        again.end()
    status = run.read_status()
    assert status["state"] == "done", status
    assert status["metrics"]["test/images"] == TEST_SIZE, status


def pause_everything(folder: Path, seconds: float) -> None:
    """Stop all processes for longer than the heartbeat timeout, as Ctrl-Z and `fg` do; training continues."""
    run = Run(folder, *PAIR, *MADE_UP)
    try:
        checkpoints = partial(folder.glob, "outputs/*/*/checkpoints/last*.ckpt")
        wait_until(lambda: bool(list(checkpoints())), START_LIMIT_S, run.describe)
        os.killpg(run.pid, signal.SIGSTOP)
        time.sleep(seconds)
        before = {path: path.stat().st_mtime_ns for path in checkpoints()}
        os.killpg(run.pid, signal.SIGCONT)
        wait_until(
            lambda: (
                run.poll() is not None or {path: path.stat().st_mtime_ns for path in checkpoints()} != before
            ),
            60,
            run.describe,
        )
        assert run.poll() is None, run.describe()
        os.kill(run.pid, signal.SIGTERM)
        assert run.wait(LIMIT_S) == 143, run.describe()
    finally:
        run.end()


def full() -> str:
    """Try all cells, and return the results."""
    preload()
    from project.training.ddp.supervisor import MAX_STOPPED_S

    seconds: dict[str, list[float]] = {}
    for cell in CELLS:
        with tempfile.TemporaryDirectory() as folder:
            seconds.setdefault(cell.name, []).append(try_cell(cell, Path(folder)))
        workers = " with workers" if cell.data is STREAMED else ""
        print(f"{cell.name} to {cell.target}{workers}: {seconds[cell.name][-1]:.1f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        pause_everything(Path(folder), MAX_STOPPED_S + 3)
    longest = ", ".join(f"{name} {max(times):.1f}" for name, times in seconds.items())
    return (
        f"2 ranks: {len(CELLS)} of {len(CELLS)} faults as promised; all processes gone after at most (s): "
        f"{longest}; none left behind; a pause of {MAX_STOPPED_S + 3:.0f} s survived"
    )


if __name__ == "__main__":
    print(full())
