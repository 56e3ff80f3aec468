"""SLURM engine, whose jobs outlive the sweep's process; a resumed sweep reattaches to them."""

import json
import math
import os
import signal
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
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
from project.sweeps.launchers.slurm_queue import (
    ArrayLimits,
    Refusals,
    SlurmQueue,
    array_of,
    cancel,
    explain_refusal,
)

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
    """Submit jobs to SLURM, each with nodes and devices of its own, one by one or as job arrays.

    A job has ended when SLURM neither runs it nor will start it again: a job that is requeued leaves an exit
    code, too.
    """

    def __init__(self, launcher: "SlurmLauncher") -> None:
        self.launcher = launcher
        self.queue = SlurmQueue(self.report)
        self.refusals = Refusals(self.report, launcher.submit_timeout_min * 60)
        self.arrays = ArrayLimits(launcher.jobs)
        self._running: dict[int, tuple[SubmissionRecord, str]] = {}  # with the id of the SLURM job
        self._collected: list[JobSpec] = []  # jobs for the next array
        self._closed = ""  # reason why no more jobs are submitted
        self._has_submitted = False
        self._is_interrupted = self._is_abandoned = self._must_cancel = False
        self._last_poll = -math.inf
        self._queried_facts: dict[int, dict[str, Any]] = {}

    def has_capacity(self) -> bool:
        jobs = self.launcher.jobs
        return jobs is None or self.launcher.array or len(self._running) < jobs  # SLURM limits an array

    def reattach(self, spec: JobSpec) -> bool:
        record = SubmissionRecord(spec)
        if (slurm_id := record.slurm_id) is None or record.facts.get("exit_code") == 0:
            return False
        if self.queue.age_s > self.launcher.poll_s:
            self.queue.query()
        if not self.queue.holds(slurm_id):
            state = RunFolder(spec.folder).read_status().get("state")
            if state not in SUCCEEDED:  # otherwise done since the sweep was resumed
                return False
        self._running[spec.number] = (record, slurm_id)
        return True

    def start(self, spec: JobSpec) -> bool:
        if spec.number in self._running:  # adopted
            return True
        if self._closed:
            raise EngineClosedError(self._closed)
        if self.launcher.array:  # `wait` submits the array: then all of its jobs are known
            self._collected.append(spec)
            return True
        return not self.refusals.are_pausing and self._submit([spec])

    def wait(self, timeout_s: float) -> list[JobExit]:
        if self._collected and (ended := self._submit_collected()):
            return ended
        if not self._is_abandoned and time.monotonic() - self._last_poll < self.launcher.poll_s:
            time.sleep(timeout_s)
            return []
        self._last_poll = time.monotonic()
        if self._must_cancel:
            self._cancel()
        facts = {number: record.facts for number, (record, _) in self._running.items()}
        if facts and not self._is_abandoned and self._is_query_due(facts):
            if self.queue.query() and self.launcher.array:
                self.arrays.update(self._live_ids())
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

    def _live_ids(self) -> list[str]:
        return [slurm_id for _, slurm_id in self._running.values()]

    def _cancel(self) -> None:
        error = cancel(self._live_ids())
        if error and not self._must_cancel:
            ids = ",".join(dict.fromkeys(map(array_of, self._live_ids())))
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

    def _submit_collected(self) -> list[JobExit]:
        """Submit an array of collected jobs if SLURM has room; return jobs that will never be submitted."""
        if self._is_interrupted:
            return self._drop(self._collected, code=128 + signal.SIGINT)
        room = self.arrays.room(self._live_ids())
        if self.refusals.are_pausing or room < 1 or not (max_tasks := self.arrays.max_tasks()):
            return []
        options = [self._sbatch_options(spec) for spec in self._collected]
        alike = [spec for spec, own in zip(self._collected, options, strict=True) if own == options[0]]
        specs = alike[:max_tasks]
        try:
            if self._submit(specs, limit=room):
                self._drop(specs)
            elif self.refusals.is_by_limit:
                self.arrays.shrink(len(specs))
            return []
        except EngineClosedError as error:
            self._closed = str(error)
            self.report(f"no more jobs are submitted: {error}")
            return self._drop(self._collected, code=128 + signal.SIGINT)
        except InputError as error:
            if not self._has_submitted:  # the next jobs would fail likewise
                raise
            return self._drop(specs, error=str(error))

    def _drop(self, specs: list[JobSpec], code: int | None = None, error: str = "") -> list[JobExit]:
        """Remove jobs from those collected; return their exits."""
        exits = [JobExit(spec.number, code, error=error) for spec in specs]
        numbers = {spec.number for spec in specs}
        self._collected = [spec for spec in self._collected if spec.number not in numbers]
        return exits

    def _sbatch_options(self, spec: JobSpec, name: str = "") -> dict[str, Any]:
        return self.launcher.sbatch_options(spec.config.trainer, name)

    def _submit(self, specs: Sequence[JobSpec], limit: float = math.inf) -> bool:
        """Submit a job, or an array of jobs with the same options; return false if SLURM refuses for now.

        Args:
            specs: jobs.
            limit: maximum number of tasks of the array that run at the same time.
        """
        sweep = specs[0].folder.parent
        try:
            executor = submitit.SlurmExecutor(sweep / FOLDER, max_num_timeout=self.launcher.max_requeues)
        except RuntimeError as error:
            raise InputError(
                "hydra/launcher=slurm: no srun here; start the sweep where sbatch works"
            ) from error
        cpus = self.launcher.cpus_per_task
        threads = thread_variables(cpus) if cpus else {}
        records = [SubmissionRecord(spec) for spec in specs]
        functions = [
            SubmittedJob(record.spec, record.renew(), threads, self.launcher.grace_s) for record in records
        ]
        name = sweep.name if len(specs) > 1 else f"{sweep.name}_{specs[0].folder.name}"
        limit = min(limit, len(specs))
        executor.update_parameters(**self._sbatch_options(specs[0], name), array_parallelism=int(limit))
        try:
            with executor.batch():  # one job alone is submitted without an array
                jobs: list[submitit.Job[None]] = [executor.submit(function) for function in functions]
        except (FailedJobError, FailedSubmissionError) as error:
            reason, is_permanent = explain_refusal(error)
            if is_permanent:
                raise InputError(
                    f"hydra/launcher=slurm: sbatch refuses job {specs[0].number} ({reason}); see "
                    "hydra.launcher.partition, account, qos, additional"
                ) from error
            if not self.refusals.add(reason, has_jobs=bool(self._running)):
                raise EngineClosedError(
                    f"hydra.launcher.submit_timeout_min={self.launcher.submit_timeout_min}: sbatch still "
                    f"refuses jobs ({reason})"
                ) from error
            return False
        self.refusals.end()
        self._has_submitted = True
        self.arrays.add(jobs[0].job_id, limit)
        for record, job in zip(records, jobs, strict=True):
            record.write_ticket(job.job_id)
            self.queue.add(job.job_id)
            self._running[record.spec.number] = (record, job.job_id)
        return True

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
