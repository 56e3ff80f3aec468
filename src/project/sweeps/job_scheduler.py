"""Scheduler that starts the jobs of a sweep when devices become free, and records their states."""

import importlib
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import datetime
from types import FrameType
from typing import Any, Protocol

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from project.errors import InputError
from project.runs.provenance import now
from project.runs.run_folder import RunFolder
from project.runs.sweep_folder import SweepFolder
from project.runs.sweep_jobs import FINISHED, SUCCEEDED, Job
from project.runtime.output_files import probe
from project.runtime.signals import REPEAT_S, SIGNALS, exit_code, handling_signals
from project.sweeps.compose import Composer, compose_job, refuse_problems
from project.sweeps.device_slots import DeviceRequest
from project.sweeps.engine import Engine, EngineClosedError, JobExit
from project.sweeps.job_order import AS_WRITTEN, JobOrder, JobQueue
from project.sweeps.job_process import JobSpec, TaskReference
from project.sweeps.live_view import LiveView

TICK_S = 0.25
PARTS_CHECK = "project.config.validation.network"
"""Module that is imported only if the sweep's process has imported torch already."""
INTERRUPTED = (*(exit_code(number) for number in SIGNALS), *(-number for number in SIGNALS))
"""Exit codes of a process that was asked to stop."""


class JobSource(Protocol):
    """Source of a sweep's jobs."""

    is_checked: bool
    """True if the configurations of all jobs were checked before the sweep started."""

    def next_job(self) -> Job | None:
        """Return the next job to start, or to record if it is `eliminated`; None if no job is available."""
        ...

    def complete_overrides(self, job: Job) -> list[str]:
        """Return all overrides of a job, including those that a search adds for pruning or pauses."""
        ...

    def finish(self, job: Job) -> None:
        """Process the result of a finished job."""
        ...


class TimeBudget:
    """Time in which jobs may start, counted from the first job: until then, modules are imported.

    Args:
        limit_s: duration [s] (None: no limit).
    """

    def __init__(self, limit_s: float | None) -> None:
        self.limit_s = math.inf if limit_s is None else limit_s
        self._start_s = math.inf

    def begin(self) -> None:
        """Start the clock, unless it runs already."""
        self._start_s = min(self._start_s, time.monotonic())

    @property
    def is_over(self) -> bool:
        return time.monotonic() - self._start_s > self.limit_s


class JobList:
    """Source of jobs that are known before the sweep starts.

    Args:
        jobs: jobs of the sweep.
        is_checked: true if the configurations of all jobs were checked.
        timeout_s: time since the first job after which no job starts [s] (None: no limit).
        order: order in which the jobs start [as written].
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        is_checked: bool = True,
        timeout_s: float | None = None,
        order: JobOrder = AS_WRITTEN,
    ) -> None:
        self.is_checked = is_checked
        self._waiting = JobQueue(jobs, order)
        self._budget = TimeBudget(timeout_s)

    def next_job(self) -> Job | None:
        if self._budget.is_over:
            return None
        self._budget.begin()
        return self._waiting.pop()

    def complete_overrides(self, job: Job) -> list[str]:
        return job.overrides

    def finish(self, job: Job) -> None:
        self._waiting.record([job])


class Scheduler:
    """Run a sweep's jobs on an engine.

    Args:
        folder: the sweep's folder.
        composer: composer of the jobs' configurations.
        engine: place where the jobs run.
        task: main function of a job.
        request: function that derives the devices of a job from its configuration.
        view: progress output.
        fail_fast: stop the sweep when a job fails.
        grace_s: time that jobs have to stop before they are killed [s].
    """

    def __init__(
        self,
        folder: SweepFolder,
        composer: Composer,
        engine: Engine,
        task: TaskReference,
        request: Callable[[DictConfig], DeviceRequest],
        view: LiveView,
        *,
        fail_fast: bool = False,
        grace_s: float = 30.0,
    ) -> None:
        self.folder = folder
        self.composer = composer
        self.engine = engine
        self.task = task
        self.request = request
        self.view = view
        self.fail_fast = fail_fast
        self.grace_s = grace_s
        self._running: dict[int, Job] = {}
        self._waiting: tuple[Job, JobSpec] | None = None
        self._signal = 0
        self._signal_s = -math.inf
        self._stopping_since: float | None = None
        self._has_failed = False
        self._has_started = self._is_closed = False
        engine.set_print(view.print)

    def run(self, source: JobSource) -> int:
        """Run all jobs of a source.

        Returns:
            The signal that stopped the sweep, 0 if none did.
        """
        try:
            with handling_signals(self._record_signal) if self.engine.handles_signals else nullcontext():
                while self._start_jobs(source) or self._running:
                    for ended in self.engine.wait(TICK_S):
                        self._end(ended, source)
                    self.view.refresh(self._running.values())
                    self._stop_if_requested()
        except BaseException:
            self.engine.kill()
            raise
        return self._signal

    @property
    def _is_stopping(self) -> bool:
        return bool(self._signal) or self._has_failed

    def _start_jobs(self, source: JobSource) -> bool:
        """Start jobs while the engine has capacity; return true if a job waits for devices."""
        while not self._is_stopping and not self._is_closed and self.engine.has_capacity():
            if self._waiting is None and not self._fetch_job(source):
                return False
            assert self._waiting is not None
            job, spec = self._waiting
            try:
                if not self.engine.start(spec):
                    return True
            except EngineClosedError as error:
                self._is_closed = True
                self.view.print(f"no more jobs are started: {error}")
                return False
            except InputError as error:
                if not self._has_started:  # the next jobs would fail likewise
                    raise
                self._waiting = None
                self._fail(job, error, source)
                continue
            self._waiting, self._has_started = None, True
            job.state, job.started = "running", now()
            job.attempts += 1
            self.folder.ledger.write(job)
            self._running[job.number] = job
            self.view.print_start(job)
        return self._waiting is not None and not self._is_stopping and not self._is_closed

    def _fetch_job(self, source: JobSource) -> bool:
        """Take the next job with a valid configuration from the source."""
        while not self._is_stopping and (job := source.next_job()) is not None:
            run = self.folder.run(job.name)
            if job.state == "eliminated":
                self._record(job, source)
                continue
            try:
                overrides = source.complete_overrides(job)
                config = compose_job(self.composer, self.folder, job, overrides)
                if not source.is_checked:
                    refuse_problems(config)
                if "torch" in sys.modules:  # imported for the jobs; otherwise each job checks its own parts
                    importlib.import_module(PARTS_CHECK).refuse_wrong_parts(config)
                request = self.request(config)
                spec = JobSpec(job.number, overrides, config, run.path.absolute(), self.task, request)
                if not self.engine.reattach(spec):
                    prepare_job_folder(run, config)
            except (InputError, HydraException, OmegaConfBaseException, OSError) as error:
                self._fail(job, error, source)
                continue
            self._waiting = (job, spec)
            return True
        return False

    def _fail(self, job: Job, error: Exception, source: JobSource) -> None:
        job.state, job.error, job.finished = "failed", str(error), now()
        self._record(job, source)

    def _end(self, ended: JobExit, source: JobSource) -> None:
        job = self._running.pop(ended.number)
        run = self.folder.run(job.name)
        if ended.error and run.read_status().get("state") not in SUCCEEDED:
            run.write_status(state="failed", error=ended.error)
            job.state, job.error = "failed", ended.error
        else:
            classify_exit(job, run, ended.exit_code, is_stopping=self._is_stopping)
        job.finished = now()
        assert job.started is not None
        elapsed = datetime.fromisoformat(job.finished) - datetime.fromisoformat(job.started)
        job.duration_s = round(ended.duration_s or elapsed.total_seconds(), 2)
        self._record(job, source)

    def _record(self, job: Job, source: JobSource) -> None:
        self.folder.ledger.write(job)
        source.finish(job)
        self.view.print_end(job, self.folder.run(job.name))
        self._has_failed |= self.fail_fast and job.state == "failed"

    def _stop_if_requested(self) -> None:
        if not self._is_stopping:
            return
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
            self.view.print_stop(len(self._running), is_signal=bool(self._signal))
            self.engine.interrupt()
        elif time.monotonic() - self._stopping_since > self.grace_s:
            self.engine.kill()

    def _record_signal(self, number: int, frame: FrameType | None) -> None:
        """Record a signal, which `run` handles; kill the jobs on a second signal."""
        now_s = time.monotonic()
        if not self._signal:
            self._signal, self._signal_s = number, now_s
        elif now_s - self._signal_s > REPEAT_S and number != signal.SIGUSR1:
            self.engine.kill()


def prepare_job_folder(run: RunFolder, config: DictConfig) -> None:
    """Create a job's folder and set `ckpt_path` to the newest checkpoint of an earlier attempt.

    Raises:
        OSError: the folder cannot be created or written to.
    """
    if (newest := run.newest_checkpoint().path) is not None:
        config.ckpt_path = str(newest.absolute())
    elif run.path.exists():
        shutil.rmtree(run.path)
    run.path.mkdir(parents=True, exist_ok=True)
    probe(run.path)
    if not run.write_status(state="starting", value=None, error=None):  # replaces that of an earlier attempt
        raise OSError(f"{run.status_file} cannot be written")


def classify_exit(job: Job, run: RunFolder, exit_code: int | None, *, is_stopping: bool = False) -> None:
    """Set a finished job's state, value and error from its status, which is safer than the exit code."""
    status = run.read_status()
    state = status.get("state")
    if state in SUCCEEDED:
        job.state, job.error, job.value = state, None, status.get("value")
        job.metrics = {name: float(value) for name, value in (status.get("metrics") or {}).items()}
        if state == "paused":
            job.pause_values = [*job.pause_values, job.value]
    elif is_stopping or exit_code in INTERRUPTED or state == "interrupted":
        job.state, job.error = "interrupted", None
    else:
        job.state, job.error = "failed", _explain_failure(status, exit_code)


def reconcile_jobs(folder: SweepFolder, jobs: list[Job], *, retry_failed: bool) -> None:
    """Update the job record of a sweep that was killed, before it is resumed."""
    for job in jobs:
        before = job.state
        has_succeeded = folder.run(job.name).read_status().get("state") in SUCCEEDED
        if job.state == "running" or (job.state == "waiting" and has_succeeded):
            classify_exit(job, folder.run(job.name), None)
        if job.state not in FINISHED or (job.state == "failed" and (retry_failed or before == "running")):
            job.state = "waiting"
        if job.state != before:
            folder.ledger.write(job)


def _explain_failure(status: dict[str, Any], exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"killed by {name}" + (", perhaps for lack of memory" if name == "SIGKILL" else "")
    if status.get("state") == "failed" and status.get("error"):
        return str(status["error"])
    return f"ended with exit code {exit_code}, without a result"
