"""SIGKILL at random times and inside saves: no saved progress is lost, and results do not change.

Each chain is one run, killed and resumed several times. Its final weights, optimizer state and metrics are
compared bit by bit with a run that was never killed.
"""

import mmap
import os
import random
import shutil
import signal
import struct
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from forked_attempts import difference, only_run, run, start, state_of, wait

from project.runs import checkpoint_files
from project.training import checkpoint_io, epoch_loop

KINDS: dict[str, list[str]] = {
    "plain": ["model=mlp", "optim=adam", "scheduler=cosine"],
    "dropout_ema": ["model=mlp", "model.dropout=0.3", "optim=sgd", "callbacks.ema.decay=0.99"],
    "mixup_accumulate": [
        *("model=mlp", "optim=adamw", "augment=strong", "scheduler=onecycle"),
        *("trainer.accumulate_grad_batches=3",),
    ],
    "plateau": ["model=lenet", "optim=adam", "scheduler=plateau", "scheduler.patience=1"],
    "ddp": [
        *("model=mlp", "model.dropout=0.3", "optim=sgd", "scheduler=step"),
        *("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"),
    ],
}
STEPS_A_SAVE = 17
SETTINGS = [
    *("data=digits", "data.batch_size=32", "trainer.max_epochs=20", "trainer.log_every_n_steps=10"),
    *(f"callbacks.last.every_steps={STEPS_A_SAVE}", "'~callbacks.progress'", "'~callbacks.early_stopping'"),
]


@dataclass
class Figures:
    """Results of the chains."""

    chains: int = 0
    kills: int = 0
    in_saves: int = 0
    most_lost: int = 0
    fallbacks: int = 0

    def __str__(self) -> str:
        return (
            f"{self.kills} kills in {self.chains} runs, {self.in_saves} of them inside a save: 0 unloadable, "
            f"0 restarts from nothing, at most {self.most_lost} steps lost (a save every {STEPS_A_SAVE}), "
            f"weights, optimizer and metrics bit-equal in {self.chains} of {self.chains}"
        )


class Steps:
    """Number of optimizer steps of a child process, in shared memory."""

    def __init__(self) -> None:
        self._word = mmap.mmap(-1, mmap.PAGESIZE)

    def watch(self) -> None:
        """In the child, store each step, and save by steps, not by time."""
        checkpoint_io.MIN_INTERVAL_S = 0.0
        advance = epoch_loop.EpochLoop.advance

        def noting(self_: epoch_loop.EpochLoop, *args: object) -> None:
            advance(self_, *args)
            if self_.trainer.is_global_zero:
                self._word[:8] = struct.pack("q", self_.global_step)

        epoch_loop.EpochLoop.advance = noting

    def read(self) -> int:
        """Return the number of steps at the end of the last group."""
        return struct.unpack("q", self._word[:8])[0]


def kill_in_save(draws: random.Random, *, first: bool) -> Callable[[], None]:
    """Have a process kill itself at a random system call of a random save.

    Args:
        draws: random choice of the save and call.
        first: there is no checkpoint yet, so spare the first save.
    """
    saves, calls = draws.randint(1, 4) + first, draws.randint(1, 9)

    def arm() -> None:
        left = {"saves": saves, "calls": calls}
        write = checkpoint_files.write

        def counted(path: Path, *args: object) -> None:
            if path.name == checkpoint_files.LAST:
                left["saves"] -= 1
            write(path, *args)
            if left["saves"] < 0 or left == {"saves": 0, "calls": calls}:
                os.killpg(0, signal.SIGKILL)  # the ranks, too

        def dying(function: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **options: object) -> object:
                if left["saves"] == 0:
                    left["calls"] -= 1
                    if left["calls"] == 0:
                        os.killpg(0, signal.SIGKILL)  # the ranks, too
                return function(*args, **options)

            return call

        checkpoint_files.write = counted
        checkpoint_files._HashingStream.write = dying(checkpoint_files._HashingStream.write)
        checkpoint_files.os.fsync = dying(os.fsync)
        checkpoint_files.os.link = dying(os.link)
        Path.replace = dying(Path.replace)

    return arm


def chain(kind: str, folder: Path, kills: int, in_saves: int, draws: random.Random, figures: Figures) -> None:
    """Kill one run several times, let it finish, and compare it with a run that was never killed.

    Raises:
        AssertionError: saved progress was lost, or the result differs.
    """
    arguments = [*(text.strip("'") for text in SETTINGS), *KINDS[kind]]
    wanted = folder / "whole"
    if not wanted.exists():
        run(arguments, wanted)
    killed = folder / f"killed-{figures.chains}"
    killed.mkdir()
    ways = ["save"] * in_saves + ["moment"] * (kills - in_saves)
    draws.shuffle(ways)
    earlier = 0
    for number, way in enumerate(ways):
        steps = Steps()
        again = [f"resume={only_run(killed).path}"] if number else arguments
        arm = kill_in_save(draws, first=number == 0) if way == "save" else lambda: None
        pid = start(again, killed, before=lambda steps=steps, arm=arm: (steps.watch(), arm()))
        if way == "moment":
            _wait_for_save(killed, pid)
            time.sleep(draws.uniform(0.0, 1.0) ** 2 * 2)
            os.kill(pid, signal.SIGKILL)
        code = wait(pid)
        if code == 0:  # the run finished before the kill
            break
        assert code == -signal.SIGKILL, f"exit code {code}\n{(killed / 'log').read_text()}"
        figures.kills += 1
        figures.in_saves += way == "save"
        reached = max(steps.read(), earlier)
        found = only_run(killed).newest_checkpoint()
        assert found.path is not None, f"nothing to go on from: {found.damaged}"
        kept = checkpoint_files.read(found.path)["global_step"]
        lost = reached - kept
        assert lost <= STEPS_A_SAVE, f"{lost} steps lost: {kept} of {reached}, {way}"
        figures.most_lost = max(figures.most_lost, lost)
        earlier = kept
    if code:
        run([f"resume={only_run(killed).path}"], killed, before=Steps().watch)
    _compare(only_run(killed).path, only_run(wanted).path)
    shutil.rmtree(killed)
    figures.chains += 1


def _wait_for_save(cwd: Path, pid: int) -> None:
    """Wait for the first checkpoint of a process, or for its end."""
    began = time.time()
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        files = list(cwd.glob(f"outputs/*/*/checkpoints/{checkpoint_files.LAST}"))
        if any(file.stat().st_mtime > began - 0.01 for file in files):
            return
        time.sleep(0.002)


def _compare(found: Path, wanted: Path) -> None:
    for name in (checkpoint_files.LAST, checkpoint_files.BEST):
        states = [state_of(folder / "checkpoints" / name) for folder in (found, wanted)]
        assert not (other := difference(*states)), f"{name}: {other} differs"
    metrics = [json_metrics(folder) for folder in (found, wanted)]
    assert metrics[0] == metrics[1], metrics


def json_metrics(folder: Path) -> dict[str, float]:
    """Return the metrics in the status of a run."""
    from project.runs.run_folder import RunFolder

    return RunFolder(folder).read_status()["metrics"]


def trial(
    chains: int, kills: int, in_saves: int, seed: int = 0, kinds: Sequence[str] = tuple(KINDS), least: int = 0
) -> Figures:
    """Run several chains, half of them with TMPDIR on another file system.

    A run may finish before its last kill; further chains are run until there are `least` kills.
    """
    figures = Figures()
    draws = random.Random(seed)
    memory = Path(os.sep, "dev", "shm")
    elsewhere = memory if memory.is_dir() else None
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory() as root, tempfile.TemporaryDirectory(dir=elsewhere) as other:
        try:
            for number in count():
                if figures.chains >= chains and figures.kills >= least:
                    break
                kind = kinds[number % len(kinds)]
                if number // len(kinds) % 2:
                    os.environ["TMPDIR"] = other
                elif before is None:
                    os.environ.pop("TMPDIR", None)
                chain(kind, Path(root) / kind, kills, in_saves, draws, figures)
        finally:
            os.environ.pop("TMPDIR", None)
            if before is not None:
                os.environ["TMPDIR"] = before
    return figures


def full() -> str:
    """Kill 20 runs eleven times each, three times inside a save, and return the results."""
    figures = trial(chains=20, kills=11, in_saves=3, least=200)
    assert figures.kills >= 200, str(figures)
    assert figures.in_saves >= 40, str(figures)
    return str(figures)
