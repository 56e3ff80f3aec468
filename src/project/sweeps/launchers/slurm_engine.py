"""SLURM engine, whose jobs outlive the sweep's process; a resumed sweep reattaches to them."""

import json
import math
import os
import signal
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import submitit
from submitit import JobEnvironment
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import DelayedSubmission

from project.errors import InputError
from project.runs.run_folder import RunFolder
from project.runs.sweep_jobs import SUCCEEDED
from project.runtime.atomic_files import replace_text
from project.runtime.torchrun import variables_from_slurm
from project.sweeps.engine import Engine, EngineClosedError, JobExit, JobProcess
from project.sweeps.job_process import JobMessage, JobSpec, thread_variables
from project.sweeps.job_scheduler import prepare_job_folder
from project.sweeps.launchers.slurm_queue import Refusals, SlurmQueue, cancel, explain_refusal

if TYPE_CHECKING:
    from project.sweeps.launchers.slurm import SlurmLauncher

FOLDER = ".submitit"
"""Subfolder of the sweep's folder for submission records and submitit's files."""

QUERY_INTERVAL_S = 30.0
"""Interval between queries of SLURM's controller, which all users share [s].

Finished jobs are detected earlier by the files that they write.
"""
STOPPED = ("CANCELLED", "PREEMPTED")
"""States of jobs that somebody stopped, and that resume continues."""


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
        """Facts that the job recorded: `id`, `starts` and, since the end of the last start, `exit_code`."""
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
        if run.read_status().get("state") in SUCCEEDED:  # requeued after its end
            if is_rank_zero:
                record.add_facts(exit_code=0)
            return
        if is_rank_zero:
            starts = record.facts.get("starts", 0)
            if starts:
                prepare_job_folder(run, self.spec.config)
            record.add_facts(id=environment.job_id, starts=starts + 1, exit_code=None)
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

    A job has ended when SLURM neither runs it nor will start it again: a job that is requeued leaves an exit
    code, too. The id of each job is recorded before the next job is submitted; a job array would not allow
    that.
    """

    def __init__(self, launcher: "SlurmLauncher") -> None:
        self.launcher = launcher
        self.queue = SlurmQueue(self.report)
        self.refusals = Refusals(self.report, launcher.submit_timeout_min * 60)
        self._running: dict[int, tuple[SubmissionRecord, str]] = {}  # with the id of the SLURM job
        self._is_interrupted = self._is_abandoned = self._must_cancel = False
        self._last_poll = -math.inf
        self._queried_facts: dict[int, dict[str, Any]] = {}

    def has_capacity(self) -> bool:
        return self.launcher.jobs is None or len(self._running) < self.launcher.jobs

    def reattach(self, spec: JobSpec) -> bool:
        record = SubmissionRecord(spec)
        if (slurm_id := record.slurm_id) is None:
            return False
        if self.queue.age_s > self.launcher.poll_s:
            self.queue.query()
        if not self.queue.holds(slurm_id):
            return False
        self._running[spec.number] = (record, slurm_id)
        return True

    def start(self, spec: JobSpec) -> bool:
        if spec.number in self._running:  # adopted
            return True
        if self.refusals.are_pausing:
            return False
        record = SubmissionRecord(spec)
        cpus = self.launcher.cpus_per_task
        threads = thread_variables(cpus) if cpus else {}
        job = self._submit(spec, SubmittedJob(spec, record.renew(), threads, self.launcher.grace_s))
        if job is None:
            return False
        record.write_ticket(job.job_id)
        self.queue.add(job.job_id)
        self._running[spec.number] = (record, job.job_id)
        return True

    def wait(self, timeout_s: float) -> list[JobExit]:
        if not self._is_abandoned and time.monotonic() - self._last_poll < self.launcher.poll_s:
            time.sleep(timeout_s)
            return []
        self._last_poll = time.monotonic()
        if self._must_cancel:
            self._cancel()
        facts = {number: record.facts for number, (record, _) in self._running.items()}
        if facts and not self._is_abandoned and self._is_query_due(facts):
            self.queue.query()
            self._queried_facts = facts
        codes = {number: known.get("exit_code") for number, known in facts.items()}
        return [
            self._end(number, code)
            for number, code in codes.items()
            if code == 0 or self._is_abandoned or not self.queue.holds(self._running[number][1])
        ]

    def interrupt(self) -> None:
        self._is_interrupted = True
        self._cancel()

    def kill(self) -> None:
        """Cancel all jobs without waiting: SLURM kills canceled jobs itself."""
        if not self._is_abandoned:
            self._is_abandoned = True
            self.interrupt()

    def _cancel(self) -> None:
        error = cancel(slurm_id for _, slurm_id in self._running.values())
        if error and not self._must_cancel:
            ids = " ".join(slurm_id for _, slurm_id in self._running.values())
            self.report(f"SLURM did not cancel all jobs ({error}); check `squeue --jobs={ids}`")
        self._must_cancel = bool(error)

    def _is_query_due(self, facts: Mapping[int, dict[str, Any]]) -> bool:
        """Return true if a job seems to have ended, or the last query is old."""
        has_hint = any(
            known.get("exit_code")
            and (known != self._queried_facts.get(number) or self.queue.is_ending(self._running[number][1]))
            for number, known in facts.items()
        )
        return has_hint or self._is_interrupted or self.queue.age_s > QUERY_INTERVAL_S

    def _submit(self, spec: JobSpec, function: SubmittedJob) -> submitit.Job[None] | None:
        """Submit a job; return None if SLURM refuses it for now."""
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
            job: submitit.Job[None] = executor.submit(function)
        except (FailedJobError, FailedSubmissionError) as error:
            reason, is_permanent = explain_refusal(error)
            if is_permanent:
                raise InputError(
                    f"hydra/launcher=slurm: sbatch refuses job {spec.number} ({reason}); see "
                    "hydra.launcher.partition, account, qos, additional"
                ) from error
            if not self.refusals.add(reason, has_jobs=bool(self._running)):
                raise EngineClosedError(
                    f"hydra.launcher.submit_timeout_min={self.launcher.submit_timeout_min}: sbatch still "
                    f"refuses jobs ({reason})"
                ) from error
            return None
        self.refusals.end()
        return job

    def _end(self, number: int, code: int | None) -> JobExit:
        record, slurm_id = self._running.pop(number)
        self.refusals.retry_soon()
        queued = self.queue.state(slurm_id)
        if code is None and (self._is_interrupted or (queued is not None and queued.state in STOPPED)):
            code = 128 + signal.SIGINT
        run = RunFolder(record.spec.folder)
        if code is None and run.read_status().get("state") in ("starting", "running"):
            state = "without a state" if queued is None else f"{queued.state}, reason {queued.reason}"
            error = f"SLURM ended job {slurm_id} ({state}); see {FOLDER}/{slurm_id}_*"
            run.write_status(state="failed", error=error)
        return JobExit(number, code)


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
