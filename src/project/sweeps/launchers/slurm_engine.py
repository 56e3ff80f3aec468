"""SLURM engine, whose jobs outlive the sweep's process; a resumed sweep reattaches to them."""

import json
import os
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import submitit
from submitit import JobEnvironment
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import DelayedSubmission

from project.errors import InputError, one_line
from project.runs.run_folder import RunFolder
from project.runtime.atomic_files import replace_text
from project.runtime.torchrun import variables_from_slurm
from project.sweeps.engine import Engine, JobExit, JobProcess
from project.sweeps.job_process import JobMessage, JobSpec, thread_variables
from project.sweeps.job_scheduler import prepare_job_folder

if TYPE_CHECKING:
    from project.sweeps.launchers.slurm import SlurmLauncher

FOLDER = ".submitit"
"""Subfolder of the sweep's folder for submission records and submitit's files."""

ACCOUNTING_INTERVAL_S = 30.0
"""Interval between queries of SLURM's accounting, which all users share [s].

Most finished jobs are detected by the files that they write, without a query.
"""


class JobFailedError(RuntimeError):
    """A job's process ended with an error; raised so that SLURM marks the job as failed."""


class SubmissionRecord:
    """Two files that link a sweep's job to a SLURM job.

    The sweep writes a ticket with a new token before submission, and adds the SLURM id afterward. The job
    writes facts to a file named after the token. A job whose token is not on the ticket ends at once. No job
    runs twice, even if the sweep is killed between submission and recording the id.
    """

    def __init__(self, spec: JobSpec, token: str | None = None) -> None:
        self.spec = spec
        self.folder = spec.folder.parent / FOLDER
        self.ticket = self.folder / f"{spec.folder.name}.json"
        self.token: str | None = token or _read(self.ticket).get("token")

    def renew(self) -> str:
        """Invalidate earlier submissions and return a new token."""
        self.token = uuid.uuid4().hex
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.folder.chmod(0o700)  # its files are unpickled, and may hold secrets
        self.write_ticket(None)
        return self.token

    def write_ticket(self, slurm_id: str | None) -> None:
        replace_text(self.ticket, json.dumps({"token": self.token, "id": slurm_id}))

    def is_current(self) -> bool:
        """Return True unless a later submission replaced this one."""
        return self.token is not None and _read(self.ticket).get("token") == self.token

    @property
    def slurm_id(self) -> str | None:
        """SLURM's job id; None if nothing was submitted."""
        return _read(self.ticket).get("id") or self.facts.get("id")

    @property
    def facts(self) -> dict[str, Any]:
        """Facts that the job recorded: `id`, `starts` and, at its end, `exit_code`."""
        return _read(self._facts_file)

    def add_facts(self, **facts: Any) -> None:
        """Record facts; called by the job."""
        replace_text(self._facts_file, json.dumps(self.facts | facts))

    @property
    def _facts_file(self) -> Path:
        return self.folder / f"{self.token}.json"


class SubmittedJob:
    """Callable of one job, which submitit pickles and calls.

    SLURM repeats the call after a time-out, a preemption or a node failure. Before a time-out or preemption,
    submitit calls `checkpoint`.
    """

    def __init__(self, spec: JobSpec, token: str, environment: dict[str, str], grace_s: float) -> None:
        self.spec = spec
        self.token = token
        self.environment = environment
        self.grace_s = grace_s
        self.path = list(sys.path)
        self._process: JobProcess | None = None

    def __call__(self) -> None:
        """Run the job, or resume it from its last checkpoint."""
        record, environment = SubmissionRecord(self.spec, self.token), JobEnvironment()
        if not record.is_current():
            print(f"{self.spec.folder.name}: a newer submission exists; this one ends")
            return
        is_rank_zero = environment.global_rank == 0
        run = RunFolder(self.spec.folder)
        if is_rank_zero:
            starts = record.facts.get("starts", 0)
            if starts:
                prepare_job_folder(run, self.spec.config)
            record.add_facts(id=environment.job_id, starts=starts + 1)
        elif (newest := run.newest_checkpoint().path) is not None:
            self.spec.config.ckpt_path = str(newest.absolute())
        variables = self.environment | variables_from_slurm()  # no rank variables if the job forks its ranks
        message = JobMessage(self.spec, variables, os.getpid(), self.path)
        process = self._process = JobProcess.start_fresh(message)
        try:
            code = process.wait()
        finally:
            process.stop(self.grace_s)
        if is_rank_zero:
            record.add_facts(exit_code=code)
        if code:
            raise JobFailedError(f"exit code {code}; see {self.spec.folder}")

    def checkpoint(self) -> DelayedSubmission:
        """Stop the job, which saves a checkpoint, and requeue it."""
        if self._process is not None:
            self._process.stop(self.grace_s)
            self._process = None
        return DelayedSubmission(self)


class SlurmEngine(Engine):
    """Submit jobs to SLURM one by one, each with nodes and devices of its own.

    The id of each job is recorded before the next job is submitted; a job array would not allow that.
    """

    def __init__(self, launcher: "SlurmLauncher") -> None:
        self.launcher = launcher
        self._running: dict[int, tuple[SubmissionRecord, submitit.Job[None]]] = {}
        self._is_interrupted = self._is_abandoned = False
        self._last_poll = self._last_query = -float("inf")

    def has_capacity(self) -> bool:
        return self.launcher.jobs is None or len(self._running) < self.launcher.jobs

    def reattach(self, spec: JobSpec) -> bool:
        record = SubmissionRecord(spec)
        if (slurm_id := record.slurm_id) is None:
            return False
        job: submitit.Job[None] = submitit.SlurmJob(record.folder, slurm_id)
        if job.done(force_check=True):
            return False
        self._running[spec.number] = (record, job)
        return True

    def start(self, spec: JobSpec) -> bool:
        if spec.number in self._running:  # adopted
            return True
        record = SubmissionRecord(spec)
        cpus = self.launcher.cpus_per_task
        threads = thread_variables(cpus) if cpus else {}
        job = self._submit(spec, SubmittedJob(spec, record.renew(), threads, self.launcher.grace_s))
        record.write_ticket(job.job_id)
        self._running[spec.number] = (record, job)
        return True

    def wait(self, timeout_s: float) -> list[JobExit]:
        if not self._is_abandoned and time.monotonic() - self._last_poll < self.launcher.poll_s:
            time.sleep(timeout_s)
            return []
        self._last_poll = time.monotonic()
        if self._running and (
            self._is_interrupted or time.monotonic() - self._last_query > ACCOUNTING_INTERVAL_S
        ):
            self._last_query = time.monotonic()
            next(iter(self._running.values()))[1].watcher.update()  # queries all jobs
        running = list(self._running.values())
        return [self._end(record, job) for record, job in running if self._is_abandoned or job.done()]

    def interrupt(self) -> None:
        """Cancel all jobs: SLURM drops queued jobs and gives running ones its own grace period."""
        self._is_interrupted = True
        for _, job in self._running.values():
            job.cancel(check=False)

    def kill(self) -> None:
        """Cancel all jobs without waiting: SLURM kills canceled jobs itself."""
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

    def _end(self, record: SubmissionRecord, job: submitit.Job[None]) -> JobExit:
        spec, code = record.spec, record.facts.get("exit_code")
        del self._running[spec.number]
        if code is None and self._is_interrupted:
            code = 128 + signal.SIGINT
        state = job.watcher.get_state(job.job_id, mode="cache")
        run = RunFolder(spec.folder)
        is_lost = code is None and state not in ("UNKNOWN", "COMPLETED")
        if is_lost and run.read_status().get("state") in ("starting", "running"):
            error = f"SLURM ended job {job.job_id}: {state}; see {FOLDER}/{job.job_id}_*"
            run.write_status(state="failed", error=error)
        return JobExit(spec.number, code)


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
