"""Jobs in the hands of submitit: they outlive the sweep's process, and a resumed sweep takes them over."""

import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from project.errors import InputError, one_line
from project.runs.run_folder import RunFolder
from project.sweeps.job_process import Order
from project.sweeps.launchers.slurm_worker import FOLDER, Record, SubmittedJob
from project.sweeps.process_engine import Ended

if TYPE_CHECKING:
    from project.sweeps.launchers.slurm import SlurmJobs

ACCOUNTING_S = 30.0
"""Seconds between questions to SLURM's accounting, which all users share. A job that ends by itself is seen
by the file that it leaves, without asking."""

Job = submitit.Job[None]


class Cluster(ABC):
    """Where jobs are submitted to.

    Args:
        parameters: makes those of a job from its trainer's settings and a name.
        max_requeues: how often a job whose time was over is started again.
    """

    def __init__(
        self, parameters: Callable[[Mapping[str, Any], str], dict[str, Any]], max_requeues: int
    ) -> None:
        self.parameters = parameters
        self.max_requeues = max_requeues

    @abstractmethod
    def executor(self, folder: Path) -> submitit.Executor:
        """Make what submits."""

    @abstractmethod
    def find(self, folder: Path, cluster_id: str) -> Job | None:
        """Return a job of an earlier process if it waits or runs."""

    def refresh(self, job: Job) -> None:  # noqa: B027 (not all can be asked)
        """Ask what became of all jobs, by way of one of them."""

    def explain(self, job: Job) -> str | None:
        """Say how a job ended that could not say so itself."""
        return None

    def submit(self, order: Order, function: Callable[[], None]) -> Job:
        """Submit one job.

        Jobs are submitted one by one, not as an array: a sampler asks for them one by one, each may want
        other nodes and devices, and each has its id on record before the next one is submitted.

        Raises:
            InputError: SLURM refuses it.
        """
        executor = self.executor(order.folder.parent / FOLDER)
        name = f"{order.folder.parent.name}_{order.folder.name}"
        executor.update_parameters(**self.parameters(order.config.trainer, name))
        try:
            return executor.submit(function)
        except (FailedJobError, FailedSubmissionError) as error:
            raise InputError(
                f"hydra/launcher=slurm: sbatch refuses job {order.number} ({one_line(error)}); see "
                "hydra.launcher.partition, account, qos, additional"
            ) from error


class SlurmCluster(Cluster):
    """SLURM, as it is found from this machine."""

    def executor(self, folder: Path) -> submitit.Executor:
        """See `Cluster`."""
        try:
            return submitit.SlurmExecutor(folder, max_num_timeout=self.max_requeues)
        except RuntimeError as error:
            raise InputError(
                "hydra.launcher.cluster=slurm: there is no srun here; start the sweep where sbatch works, or "
                "try it with hydra.launcher.cluster=local"
            ) from error

    def find(self, folder: Path, cluster_id: str) -> Job | None:
        """See `Cluster`."""
        job: Job = submitit.SlurmJob(folder, cluster_id)
        return None if job.done(force_check=True) else job

    def refresh(self, job: Job) -> None:
        """See `Cluster`."""
        job.watcher.update()

    def explain(self, job: Job) -> str | None:
        """See `Cluster`."""
        state = job.watcher.get_state(job.job_id, mode="cache")
        if state in ("UNKNOWN", "COMPLETED"):
            return None
        return f"SLURM ended job {job.job_id}: {state}; see {FOLDER}/{job.job_id}_*"


class LocalCluster(Cluster):
    """Submitit's stand-in: a process of this machine that watches over each job."""

    def executor(self, folder: Path) -> submitit.Executor:
        """See `Cluster`."""
        return submitit.LocalExecutor(folder, max_num_timeout=self.max_requeues)

    def find(self, folder: Path, cluster_id: str) -> Job | None:
        """See `Cluster`."""
        process = Watched(int(cluster_id))
        job: Job = submitit.LocalJob(folder, cluster_id, process=process)  # type: ignore[arg-type]
        return None if job.done() else job


class Watched:
    """A process that another one started, as far as `LocalJob` needs a `Popen`.

    Args:
        pid: its id.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> int | None:
        """Return None while it runs."""
        with suppress(OSError):
            os.kill(self.pid, 0)
            if b"submitit" in Path(f"/proc/{self.pid}/cmdline").read_bytes():  # or another process by now
                return None
        return 0

    def send_signal(self, number: int) -> None:
        """Signal it."""
        with suppress(OSError):
            os.kill(self.pid, number)


@dataclass
class Running:
    """A job that was submitted.

    Args:
        order: what it was told.
        record: of its submission.
        job: submitit's handle.
    """

    order: Order
    record: Record
    job: Job


class SubmittingEngine:
    """See `Engine`.

    Args:
        cluster: where jobs are submitted to.
        launcher: its settings.
    """

    def __init__(self, cluster: Cluster, launcher: "SlurmJobs") -> None:
        self.cluster = cluster
        self.launcher = launcher
        self._running: dict[int, Running] = {}
        self._interrupted = self._given_up = False
        self._looked = self._asked = -float("inf")

    def has_room(self) -> bool:
        """See `Engine`."""
        return self.launcher.jobs is None or len(self._running) < self.launcher.jobs

    def adopt(self, order: Order) -> bool:
        """See `Engine`."""
        record = Record(order)
        if (cluster_id := record.cluster_id) is None:
            return False
        if (job := self.cluster.find(record.folder, cluster_id)) is None:
            return False
        self._running[order.number] = Running(order, record, job)
        return True

    def start(self, order: Order) -> bool:
        """See `Engine`."""
        if order.number in self._running:  # adopted
            return True
        record = Record(order)
        cpus = self.launcher.cpus_per_task
        threads = {"OMP_NUM_THREADS": str(cpus), "MKL_NUM_THREADS": str(cpus)} if cpus else {}
        function = SubmittedJob(order, record.renew(), threads, self.launcher.grace_s)
        job = self.cluster.submit(order, function)
        record.submitted(job.job_id)
        self._running[order.number] = Running(order, record, job)
        return True

    def wait(self, timeout_s: float) -> list[Ended]:
        """See `Engine`."""
        if not self._given_up and time.monotonic() - self._looked < self.launcher.poll_s:
            time.sleep(timeout_s)
            return []
        self._looked = time.monotonic()
        self._ask()
        over = [running for running in self._running.values() if self._given_up or running.job.done()]
        return [self._end(running) for running in over]

    def interrupt(self) -> None:
        """See `Engine`. SLURM takes waiting jobs out of its queue, and gives running ones its own grace."""
        self._interrupted = True
        self._cancel()

    def kill(self) -> None:
        """See `Engine`. SLURM kills what it cancels by itself: nothing more is waited for."""
        if not self._given_up:
            self._given_up = True
            self._cancel()

    def _cancel(self) -> None:
        for running in self._running.values():
            running.job.cancel(check=False)

    def _ask(self) -> None:
        if self._running and (self._interrupted or time.monotonic() - self._asked > ACCOUNTING_S):
            self._asked = time.monotonic()
            self.cluster.refresh(next(iter(self._running.values())).job)

    def _end(self, running: Running) -> Ended:
        del self._running[running.order.number]
        code = running.record.facts.get("exit_code")
        if code is None and self._interrupted:
            code = 128 + signal.SIGINT
        if code is None and (reason := self.cluster.explain(running.job)):
            run = RunFolder(running.order.folder)
            if run.read_status().get("state") in ("starting", "running"):
                run.write_status(state="failed", error=reason)
        return Ended(running.order.number, code)
