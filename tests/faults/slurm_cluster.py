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


def requeue_all(cluster: SlurmCluster, cwd: Path, num_jobs: int, requeues: int, *options: str) -> str:
    """Requeue each job of a sweep a number of times; return the figures."""
    moments = random.Random(0)
    lrs = [round(0.01 * number, 2) for number in range(1, num_jobs + 1)]
    left = dict.fromkeys(lrs, requeues)
    values = f"optim.lr={','.join(map(str, lrs))}"
    with sweep(cluster, cwd, "-m", *TINY, *LAUNCHER, values, *options) as running:

        def is_all_restarted() -> bool:
            counts = {lr: len(running.starts(lr)) for lr in lrs}
            for lr, count in counts.items():
                if left[lr] and count == requeues - left[lr] + 1:
                    time.sleep(moments.uniform(0, LONGEST_DELAY_S))
                    assert not (error := cluster.command("scontrol", "requeue", running.starts(lr)[0])), error
                    left[lr] -= 1
                elif count == requeues + 1:
                    running.release(lr)
            return all(count == requeues + 1 for count in counts.values())

        cluster.wait(is_all_restarted, running.process)
        shown = running.end()
        submitted = len(running.slurm_states)
        starts = [running.starts(lr) for lr in lrs]
        jobs = list(running.folder.ledger.read().values())
    assert running.process.returncode == 0, shown
    assert [len(ids) for ids in starts] == [requeues + 1] * num_jobs, starts
    assert all(len(set(ids)) == 1 for ids in starts), starts
    assert [(job.state, job.attempts) for job in jobs] == [("done", 1)] * num_jobs, shown
    assert submitted == num_jobs, "a job was submitted twice"
    return f"{num_jobs * requeues} requeues; {num_jobs} of {num_jobs} done once, {submitted} submitted"


def full() -> str:
    """Requeue ten jobs once and one job ten times, as single SLURM jobs, and ten jobs in job arrays."""
    figures = []
    trials: list[tuple[str, int, int, list[str]]] = [
        ("single jobs", 10, 1, []),
        ("one job", 1, 10, []),
        ("job arrays", 10, 1, ["hydra.launcher.array=true"]),
    ]
    with loopback_slurm.running() as cluster, tempfile.TemporaryDirectory() as folder:
        for name, num_jobs, requeues, options in trials:
            cwd = Path(folder, name)
            cwd.mkdir()
            cluster.deadline = time.monotonic() + loopback_slurm.LIMIT_S
            figures.append(f"{name}: {requeue_all(cluster, cwd, num_jobs, requeues, *options)}")
    return "\n".join(figures)
