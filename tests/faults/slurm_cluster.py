"""`scontrol requeue` of every job of a sweep at a random time: each is done once, as the same SLURM job."""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "helpers"))

import gated_task
import loopback_slurm
from loopback_slurm import SlurmCluster

from project.runs.sweep_folder import SweepFolder

TINY = ("model=mlp", "data=synthetic", "data.train_size=200", "data.test_size=101", "trainer.accelerator=cpu")
LAUNCHER = ("hydra/launcher=slurm", "hydra.launcher.poll_s=0.3", "hydra.launcher.grace_s=5")
SCRIPT = Path(gated_task.__file__)
JOBS = 10
LONGEST_DELAY_S = 3.0
"""Longest time between the start of a job and its requeue [s]."""


class Sweep:
    """A sweep in a process of its own, whose jobs SLURM runs; one sweep submits at a time."""

    def __init__(self, cluster: SlurmCluster, cwd: Path, *arguments: str, script: Path = SCRIPT) -> None:
        self.cluster, self.cwd, self.gate = cluster, cwd, cwd / "gate"
        self.gate.mkdir(exist_ok=True)
        self.known = set(cluster.states())
        self.process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            cwd=cwd,
            env=os.environ | cluster.variables | {"OMP_NUM_THREADS": "1", "GATED_TASK": str(self.gate)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def folder(self) -> SweepFolder:
        (record,) = self.cwd.glob("outputs/sweep/*/sweep.json")
        return SweepFolder(record.parent)

    @property
    def states(self) -> list[str]:
        return [job.state for job in self.folder.ledger.read().values()]

    @property
    def slurm_states(self) -> dict[str, str]:
        """States of the SLURM jobs that were submitted since the start."""
        return {number: state for number, state in self.cluster.states().items() if number not in self.known}

    def starts(self, lr: float) -> list[str]:
        """Return the SLURM ids of the starts of a job."""
        file = self.gate / f"starts_{lr}"
        return file.read_text().split() if file.exists() else []

    def wait_for_starts(self, *counts: tuple[float, int]) -> None:
        self.cluster.wait(lambda: all(len(self.starts(lr)) == count for lr, count in counts), self.process)

    def release(self, *lrs: float) -> None:
        """Let jobs end [all]."""
        for name in [f"release_{lr}" for lr in lrs] or ["release"]:
            (self.gate / name).touch()

    def end(self) -> str:
        """Wait for the end of the sweep; return its output."""
        self.cluster.wait(lambda: self.process.poll() is not None)
        return self.process.communicate()[0]


@contextmanager
def sweep(cluster: SlurmCluster, cwd: Path, *arguments: str, script: Path = SCRIPT) -> Iterator[Sweep]:
    """Start a sweep, and end it and its jobs at the end of the block."""
    started = Sweep(cluster, cwd, *arguments, script=script)
    try:
        yield started
    finally:
        with suppress(ProcessLookupError):
            started.process.kill()
        started.process.wait()
        ids = {job_id for file in started.gate.glob("starts_*") for job_id in file.read_text().split()}
        if numbers := {job_id.partition("_")[0] for job_id in ids}:
            cluster.command("scancel", *numbers)
        assert started.process.stdout is not None
        started.process.stdout.close()


def requeue_all(cluster: SlurmCluster, cwd: Path, *options: str) -> str:
    """Requeue each job of a sweep once; return the figures."""
    moments = random.Random(0)
    lrs = [round(0.01 * number, 2) for number in range(1, JOBS + 1)]
    values = f"optim.lr={','.join(map(str, lrs))}"
    requeued: set[float] = set()
    released: set[float] = set()
    with sweep(cluster, cwd, "-m", *TINY, *LAUNCHER, values, *options) as running:

        def is_all_released() -> bool:
            for lr in lrs:
                starts = running.starts(lr)
                if len(starts) == 1 and lr not in requeued:
                    time.sleep(moments.uniform(0, LONGEST_DELAY_S))
                    cluster.command("scontrol", "requeue", starts[0])
                    requeued.add(lr)
                elif len(starts) > 1 and lr not in released:
                    running.release(lr)
                    released.add(lr)
            return len(released) == JOBS

        cluster.wait(is_all_released, running.process)
        shown = running.end()
        submitted = len(running.slurm_states)
        starts = [running.starts(lr) for lr in lrs]
        jobs = list(running.folder.ledger.read().values())
    assert running.process.returncode == 0, shown
    assert [len(ids) for ids in starts] == [2] * JOBS, starts
    assert all(first == second for first, second in starts), starts
    assert [(job.state, job.attempts) for job in jobs] == [("done", 1)] * JOBS, shown
    assert submitted == JOBS, "a job was submitted twice"
    return f"{len(requeued)} of {JOBS} requeued jobs done once, {submitted} SLURM jobs, {2 * JOBS} starts"


def full() -> str:
    """Requeue all jobs of a sweep of single SLURM jobs, and of one of job arrays."""
    figures = []
    with loopback_slurm.running() as cluster, tempfile.TemporaryDirectory() as folder:
        for name, options in {"single": (), "arrays": ("hydra.launcher.array=true",)}.items():
            cwd = Path(folder, name)
            cwd.mkdir()
            cluster.deadline = time.monotonic() + loopback_slurm.LIMIT_S
            figures.append(f"{name}: {requeue_all(cluster, cwd, *options)}")
    return "\n".join(figures)
