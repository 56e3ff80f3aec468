"""A run on two devices, one of whose processes fails, dies, stands still or is told to stop.

Whatever happens to whom: all processes are gone soon, what happened first is told once and gives the exit
code, and where the run was told to stop it has saved and goes on.
"""

import gc
import importlib.util
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
"""With a worker process for each rank's training images, and later one for those of validation."""

LIMIT_S = 15.0
"""Within which all processes are gone."""

HANG_S = 6.0
"""`trainer.timeout_min` of a trial in which a rank hangs."""

START_LIMIT_S = 240.0
RAISED = "ArithmeticError: this rank was made to fail"
NAMES = ("raise", "SIGKILL", "SIGSTOP", "SIGTERM", "SIGINT", "SIGUSR1")
TARGETS = ("rank 0", "rank 1", "ranks", "group", "parent")
CODES = {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 75}
WITH_WORKERS = (("SIGKILL", "rank 1"), ("SIGSTOP", "rank 0"), ("SIGTERM", "group"), ("SIGINT", "group"))


@dataclass(frozen=True)
class Cell:
    """One fault.

    Args:
        name: `raise`, `hang` or a signal.
        target: `rank 0`, `rank 1`, `ranks` (both), `group` (with their parent, as a terminal signals), or
            `parent`, alone.
        more: overrides of the run.
        data: likewise.
    """

    name: str
    target: str
    more: tuple[str, ...] = ()
    data: tuple[str, ...] = MADE_UP

    @property
    def code(self) -> int:
        """Exit code that the run has to end with; negative: a signal."""
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
    """A command line in a process group of its own, forked from this process, which has imported everything.

    Args:
        folder: where it runs, and its output goes.
        arguments: of `scripts/train.py`.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.output = folder / "output.txt"
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            try:
                os.setpgid(0, 0)
                die_with_parent(parent)
                for finalizer in list(weakref.finalize._registry):
                    finalizer.detach()  # of temporary folders, which are the parent's
                os.chdir(folder)
                _become(self.output, arguments)
            finally:
                os._exit(99)
        os.setpgid(self.pid, self.pid)
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code once it has ended; negative: the signal that killed it."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, limit_s: float) -> int:
        """Wait for its end and that of all its processes; return the exit code."""
        wait_until(lambda: self.poll() is not None and not self.processes(), limit_s, self.describe)
        assert self._code is not None
        return self._code

    def processes(self) -> list[int]:
        """All processes of its group that are alive, orphans too."""
        return [pid for pid, _, group, state in _table() if group == self.pid and state != "Z"]

    def ranks(self) -> list[int]:
        """Its ranks, in order."""
        return sorted(pid for pid, parent, _, state in _table() if parent == self.pid and state != "Z")

    def end(self) -> None:
        """Kill what is left of it."""
        if self.processes():
            os.killpg(self.pid, signal.SIGKILL)
        if self.poll() is None:
            self.wait(60)

    def text(self) -> str:
        """What it has printed."""
        return self.output.read_text() if self.output.exists() else ""

    def describe(self) -> str:
        """What there is to see when it did not do as it should."""
        left = [row for row in _table() if row[2] == self.pid]
        return f"exit code {self._code}, processes {left}\n{self.text()}"


def wait_until(condition: Callable[[], bool], limit_s: float, describe: Callable[[], str]) -> None:
    """Wait for something; tell what there was instead if it does not come in time."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"after {limit_s:.0f} s: {describe()}"
        time.sleep(0.02)


def _table() -> Iterator[tuple[int, int, int, str]]:
    """Process id, parent, group and state of all processes."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        yield int(entry.name), int(parent), int(group), state


def _become(output: Path, arguments: tuple[str, ...]) -> None:
    """Be `python scripts/train.py` with these arguments, and end."""
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

    from project.config import cli

    GlobalHydra.instance().clear()
    spec = importlib.util.spec_from_file_location("train_script", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    _arm(Path.cwd())
    cli.run(module.main, module.CONF, "train")


def _arm(folder: Path) -> None:
    """Have a rank raise, or wait for ever, in the middle of an epoch when a file of its name appears."""
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
    """Import what runs need, once for all that are forked."""
    from project.sweeps.launchers.local import ALWAYS_NEEDED, preload

    preload(ALWAYS_NEEDED)
    import torch

    torch.set_num_threads(1)
    gc.collect()


def only_run(folder: Path) -> Path:
    """The run folder below a folder."""
    (found,) = folder.glob("outputs/*/*/status.json")
    return found.parent


def try_cell(cell: Cell, folder: Path) -> float:
    """Start a run, do what the cell says to it while it trains, and see what becomes of it.

    Returns:
        Seconds until all its processes were gone.

    Raises:
        AssertionError: a promise was not kept.
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
        time.sleep(0.1 + 0.3 * (os.getpid() + run.pid) % 7 / 7)  # at any moment of an epoch
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
    """Seconds that pass until anybody can know of a fault."""
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
        assert text.count(RAISED) == 2, text  # once with its traceback, once as the run's error
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
    """A run that was told to stop has a valid checkpoint of its last step, from which it goes on."""
    from project.runs import checkpoints as checkpoint
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
    """Ctrl-Z and fg, or a closed lid: for longer than a rank may stand still; then the training goes on."""
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
    """Try all cells."""
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
