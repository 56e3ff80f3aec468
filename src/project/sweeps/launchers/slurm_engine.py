"""The engine of SLURM: its jobs outlive the sweep's process, and a resumed sweep takes them over."""

import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from project.errors import InputError, one_line
from project.runs.run_folder import RunFolder
from project.sweeps.job_process import JobSpec
from project.sweeps.launchers.slurm_job import FOLDER, SubmissionRecord, SubmittedJob
from project.sweeps.process_engine import Engine, JobExit

if TYPE_CHECKING:
    from project.sweeps.launchers.slurm import SlurmLauncher

ACCOUNTING_S = 30.0
"""Time between two queries of SLURM's accounting, which all users share [s]. A job that ends by itself is
noticed by the file that it leaves, without a query."""


@dataclass
class Submission:
    """Submitted job."""

    spec: JobSpec
    record: SubmissionRecord
    job: submitit.Job[None]


class SlurmEngine(Engine):
    """Submit jobs to SLURM one by one, each with nodes and devices of its own.

    The id of each job is on record before the next is submitted; a job array would not allow that.
    """

    def __init__(self, launcher: "SlurmLauncher") -> None:
        self.launcher = launcher
        self._running: dict[int, Submission] = {}
        self._is_interrupted = self._is_abandoned = False
        self._last_look = self._last_query = -float("inf")

    def has_room(self) -> bool:
        return self.launcher.jobs is None or len(self._running) < self.launcher.jobs

    def adopt(self, spec: JobSpec) -> bool:
        record = SubmissionRecord(spec)
        if (slurm_id := record.slurm_id) is None:
            return False
        job: submitit.Job[None] = submitit.SlurmJob(record.folder, slurm_id)
        if job.done(force_check=True):
            return False
        self._running[spec.number] = Submission(spec, record, job)
        return True

    def start(self, spec: JobSpec) -> bool:
        if spec.number in self._running:  # adopted
            return True
        record = SubmissionRecord(spec)
        cpus = self.launcher.cpus_per_task
        threads = {"OMP_NUM_THREADS": str(cpus), "MKL_NUM_THREADS": str(cpus)} if cpus else {}
        job = self._submit(spec, SubmittedJob(spec, record.renew(), threads, self.launcher.grace_s))
        record.write_ticket(job.job_id)
        self._running[spec.number] = Submission(spec, record, job)
        return True

    def wait(self, timeout_s: float) -> list[JobExit]:
        if not self._is_abandoned and time.monotonic() - self._last_look < self.launcher.poll_s:
            time.sleep(timeout_s)
            return []
        self._last_look = time.monotonic()
        if self._running and (self._is_interrupted or time.monotonic() - self._last_query > ACCOUNTING_S):
            self._last_query = time.monotonic()
            next(iter(self._running.values())).job.watcher.update()  # asks for all jobs
        return [
            self._end(one) for one in list(self._running.values()) if self._is_abandoned or one.job.done()
        ]

    def interrupt(self) -> None:
        """Cancel all jobs: SLURM drops waiting ones, and gives running ones its own grace period."""
        self._is_interrupted = True
        for running in self._running.values():
            running.job.cancel(check=False)

    def kill(self) -> None:
        """Cancel all jobs and wait for none of them: SLURM kills cancelled jobs by itself."""
        if not self._is_abandoned:
            self._is_abandoned = True
            self.interrupt()

    def _submit(self, spec: JobSpec, function: SubmittedJob) -> submitit.Job[None]:
        try:
            executor = submitit.SlurmExecutor(
                spec.folder.parent / FOLDER, max_num_timeout=self.launcher.max_requeues
            )
        except RuntimeError as error:
            raise InputError(
                "hydra/launcher=slurm: no srun here; start the sweep where sbatch works"
            ) from error
        name = f"{spec.folder.parent.name}_{spec.folder.name}"
        executor.update_parameters(**self.launcher.sbatch_options(spec.config.trainer, name))
        try:
            return executor.submit(function)
        except (FailedJobError, FailedSubmissionError) as error:
            raise InputError(
                f"hydra/launcher=slurm: sbatch refuses job {spec.number} ({one_line(error)}); see "
                "hydra.launcher.partition, account, qos, additional"
            ) from error

    def _end(self, running: Submission) -> JobExit:
        del self._running[running.spec.number]
        code = running.record.facts.get("exit_code")
        if code is None and self._is_interrupted:
            code = 128 + signal.SIGINT
        state = running.job.watcher.get_state(running.job.job_id, mode="cache")
        run = RunFolder(running.spec.folder)
        is_lost = code is None and state not in ("UNKNOWN", "COMPLETED")
        if is_lost and run.read_status().get("state") in ("starting", "running"):
            job_id = running.job.job_id
            error = f"SLURM ended job {job_id}: {state}; see {FOLDER}/{job_id}_*"
            run.write_status(state="failed", error=error)
        return JobExit(running.spec.number, code)
