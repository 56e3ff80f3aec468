"""Sweep whose jobs are simulated, and which is killed at random places, to test the state in the ledger."""

import random
import re
from collections.abc import Callable
from pathlib import Path

from project.runs import checkpoint_files
from project.runs.sweep_folder import SweepFolder
from project.runs.sweep_jobs import Job
from project.sweeps.job_scheduler import JobSource, classify_exit, reconcile_jobs

WORKERS = 4


def loss_of(job: Job, epochs: int) -> float:
    """Return the loss of a job, which depends on its values and epochs alone."""
    return random.Random(f"{job.settings} {epochs}").random()


class KilledError(Exception):
    """The sweep's process was killed."""


class SimulatedSweep:
    """Sweep whose jobs end in any order, and may outlive the sweep as those of SLURM do.

    A job's checkpoint lists the numbers of the jobs that trained its epochs.

    Args:
        folder: folder of the sweep.
        make_source: makes the source of the jobs from the folder and the jobs on record.
        max_epochs: epochs after which a job is done.
        seed: seed of the order of events.
        kill: probability of a kill at each place where the state on disk has changed.
    """

    def __init__(
        self,
        folder: SweepFolder,
        make_source: Callable[[SweepFolder, list[Job]], JobSource],
        max_epochs: int,
        seed: int,
        kill: float,
    ) -> None:
        self.folder = folder
        self.make_source = make_source
        self.max_epochs = max_epochs
        self.draws = random.Random(seed)
        self.kill = kill
        self.num_kills = 0
        self.trained: list[tuple[int, int]] = []  # number of the job, and epochs at its end
        self._running: dict[int, tuple[Job, int]] = {}  # with the epochs

    def run(self) -> None:
        """Run the sweep to its end, and resume it after each kill."""
        while True:
            try:
                self._run_until_killed()
                return
            except KilledError:
                self.num_kills += 1
                for number in list(self._running):
                    if self.draws.random() < 0.5:
                        self._end(number)
                self._running.clear()

    def checkpoint(self, job: Job) -> Path:
        """Return the file of a job's last checkpoint."""
        return self.folder.run(job.name).last_checkpoint

    def may_be_killed(self) -> None:
        """Kill the sweep with its probability."""
        if self.draws.random() < self.kill:
            raise KilledError

    def _run_until_killed(self) -> None:
        jobs = list(self.folder.ledger.read().values())
        reconcile_jobs(self.folder, jobs, retry_failed=False)
        source = self.make_source(self.folder, jobs)
        while True:
            while len(self._running) < WORKERS and (job := source.next_job()) is not None:
                self.may_be_killed()
                self._start(job, source.complete_overrides(job))
            if not self._running:
                return
            job = self._end(self.draws.choice(list(self._running)))
            self.may_be_killed()
            classify_exit(job, self.folder.run(job.name), 0)
            self.folder.ledger.write(job)
            source.finish(job)
            self.may_be_killed()

    def _start(self, job: Job, overrides: list[str]) -> None:
        assert job.number not in self._running
        run = self.folder.run(job.name)
        run.path.mkdir(exist_ok=True)
        run.write_status(state="starting", value=None, error=None)
        self.may_be_killed()
        pause = re.search(r"callbacks\.pause=.*epochs:(\d+)", " ".join(overrides))
        self._running[job.number] = (job, int(pause[1]) if pause else self.max_epochs)
        self.may_be_killed()
        job.state = "running"
        self.folder.ledger.write(job)
        self.may_be_killed()

    def _end(self, number: int) -> Job:
        job, epochs = self._running.pop(number)
        self.trained.append((number, epochs))
        file = self.checkpoint(job)
        before = file.read_text().split() if file.exists() else []
        content = " ".join([*before, *[str(number)] * (epochs - len(before))]).encode()
        checkpoint_files.write(file, lambda stream: stream.write(content), len(content))
        state = "done" if epochs == self.max_epochs else "paused"
        self.folder.run(job.name).write_status(state=state, value=loss_of(job, epochs), metrics={})
        return job
