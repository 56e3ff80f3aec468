"""The queue: starts jobs as devices get free, and keeps the record of what became of them."""

import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Any, Protocol

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, read_write
from omegaconf.errors import OmegaConfBaseException

from project.config.derived_values import complete
from project.config.output_paths import Output, find_misplaced, outside
from project.config.validation import find_problems
from project.errors import InputError
from project.runs.provenance import now
from project.runs.run_folder import RunFolder
from project.runs.sweep_folder import SweepFolder
from project.runs.sweep_jobs import FINISHED, SUCCEEDED, Job, State
from project.runtime.signals import REPEAT_S, SIGNALS, exit_code
from project.runtime.write_probe import find_unusable, probe
from project.sweeps.compose import Composer
from project.sweeps.device_slots import Need
from project.sweeps.job_process import Order, Task
from project.sweeps.live_view import View
from project.sweeps.process_engine import Ended, Engine

TICK_S = 0.25
INTERRUPTED = (
    *(exit_code(number) for number in SIGNALS),
    *(-number for number in SIGNALS),
)
"""Exit codes of a process that somebody asked to stop."""


class Source(Protocol):
    """Where a sweep's jobs come from.

    Attributes:
        checked: the jobs' configurations have proved right already.
    """

    checked: bool

    def overrides(self, job: Job) -> list[str]:
        """All overrides of a job, those included that depend on where and when it runs."""
        ...

    def next(self) -> Job | None:
        """The next job to start; None if there is none, for now or for good."""
        ...

    def ended(self, job: Job) -> None:
        """Take notice of what became of a job."""
        ...


class Dispatcher:
    """Runs a sweep's jobs.

    Args:
        folder: the sweep's.
        composer: of the jobs' configurations.
        engine: where they run.
        task: what they run.
        need: says what devices a configuration takes.
        view: what the user sees.
        fail_fast: stop the sweep when a job fails.
        grace_s: seconds that jobs have to stop when the sweep is stopped.
    """

    def __init__(
        self,
        folder: SweepFolder,
        composer: Composer,
        engine: Engine,
        task: Task,
        need: Callable[[DictConfig], Need],
        view: View,
        *,
        fail_fast: bool = False,
        grace_s: float = 30.0,
    ) -> None:
        self.folder = folder
        self.composer = composer
        self.engine = engine
        self.task = task
        self.need = need
        self.view = view
        self.fail_fast = fail_fast
        self.grace_s = grace_s
        self._running: dict[int, Job] = {}
        self._waiting: tuple[Job, Order] | None = None
        self._signal = 0
        self._stopping_since: float | None = None
        self._failed = False

    def run(self, source: Source) -> int:
        """Run all jobs of a source.

        Returns:
            The signal that stopped the sweep, 0 if none did.
        """
        try:
            with self._signals():
                while self._start_some(source) or self._running:
                    for ended in self.engine.wait(TICK_S):
                        self._end(ended, source)
                    self.view.tick(self._running.values())
                    self._stop_if_told()
        except BaseException:
            self.engine.kill()
            raise
        return self._signal

    def _start_some(self, source: Source) -> bool:
        """Start jobs while there is room; return whether one is waiting for its turn."""
        while not self._stopping and self.engine.has_room():
            if self._waiting is None and not self._fetch(source):
                return False
            assert self._waiting is not None
            job, order = self._waiting
            if not self.engine.start(order):
                return True
            self._waiting = None
            job.state, job.started = "running", now()
            job.attempts += 1
            self.folder.ledger.write(job)
            self._running[job.number] = job
            self.view.started(job)
        return self._waiting is not None and not self._stopping

    def _fetch(self, source: Source) -> bool:
        """Take the next job that can run at all from the source."""
        while not self._stopping and (job := source.next()) is not None:
            run = self.folder.run(job.name)
            try:
                config = compose_job(self.composer, self.folder, job, source.overrides(job))
                if not source.checked:
                    refuse_problems(config)
                order = Order(job.number, config, run.path.absolute(), self.task, self.need(config))
                if not self.engine.adopt(order):
                    prepare(run, config)
            except (InputError, HydraException, OmegaConfBaseException, OSError) as error:
                job.state, job.error, job.finished = "failed", str(error), now()
                self._record(job, source)
                continue
            self._waiting = (job, order)
            return True
        return False

    def _end(self, ended: Ended, source: Source) -> None:
        job = self._running.pop(ended.number)
        judge(job, self.folder.run(job.name), ended.exit_code, stopped=self._stopping)
        job.finished = now()
        job.duration_s = round(_seconds(job), 2)
        self._record(job, source)

    def _record(self, job: Job, source: Source) -> None:
        self.folder.ledger.write(job)
        source.ended(job)
        self.view.ended(job, self.folder.run(job.name))
        if job.state == "failed" and self.fail_fast:
            self._failed = True

    @property
    def _stopping(self) -> bool:
        return bool(self._signal) or self._failed

    def _stop_if_told(self) -> None:
        if not self._stopping:
            return
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
            self.view.stopping(self._signal, len(self._running))
            self.engine.interrupt()
        elif time.monotonic() - self._stopping_since > self.grace_s:
            self.engine.kill()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Note signals instead of raising wherever the program is; a second one ends the jobs at once."""
        since = -float("inf")

        def note(number: int, frame: FrameType | None) -> None:
            nonlocal since
            now = time.monotonic()
            if not self._signal:
                since = now
            elif now - since > REPEAT_S and number != signal.SIGUSR1:
                self.engine.kill()
            self._signal = self._signal or number

        heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup
        earlier = {number: signal.signal(number, note) for number in heard}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)


def compose_job(composer: Composer, folder: SweepFolder, job: Job, overrides: Sequence[str]) -> DictConfig:
    """Compose a job's configuration, with its folder."""
    config = composer.compose_job(overrides, job.number)
    with read_write(config.hydra):
        config.hydra.sweep.dir = str(folder.path.absolute())
        config.hydra.sweep.subdir = job.name
        config.hydra.runtime.output_dir = str((folder.path / job.name).absolute())
    complete(config)
    return config


def refuse_problems(config: DictConfig) -> list[Output]:
    """Check a configuration.

    Returns:
        What the job will write outside its folder.

    Raises:
        InputError: what is wrong with it, a line each.
    """
    hydra = HydraConfig.instance()
    earlier = hydra.cfg
    hydra.set_config(config)  # what ${hydra:…} is resolved from
    try:
        problems = dict.fromkeys([*find_problems(config), *find_unusable(config), *find_misplaced(config)])
        if problems:
            raise InputError("\n".join(problems))
        return list(outside(config))
    finally:
        hydra.cfg = earlier


def prepare(run: RunFolder, config: DictConfig) -> None:
    """Make a job's folder; have the job go on from the checkpoint of an earlier attempt.

    Raises:
        OSError: it cannot be made or written to.
    """
    if (newest := run.newest_checkpoint().path) is not None:
        config.ckpt_path = str(newest.absolute())
    elif run.path.exists():
        shutil.rmtree(run.path)
    run.path.mkdir(parents=True, exist_ok=True)
    probe(run.path)
    if not run.write_status(state="starting", value=None, error=None):  # an earlier attempt's would count
        raise OSError(f"{run.status_file} cannot be written")


def judge(job: Job, run: RunFolder, exit_code: int | None, *, stopped: bool = False) -> None:
    """Say what became of a job: by what it wrote into its folder, for an exit code can lie.

    Args:
        job: to be told.
        run: its folder.
        exit_code: of its process, if anybody knows.
        stopped: it was told to stop, and killed if it did not.
    """
    status = run.read_status()
    state: State
    if status.get("state") in SUCCEEDED:
        state, job.error = status["state"], None
        job.value, job.metrics = status.get("value"), _plain(status.get("metrics") or {})
    elif stopped or exit_code in INTERRUPTED or status.get("state") == "interrupted":
        state, job.error = "interrupted", None
    else:
        state, job.error = "failed", _reason(status, exit_code)
    job.state = state


def settle(folder: SweepFolder, jobs: list[Job], *, retry: bool) -> None:
    """Bring the jobs of a sweep that ended at any moment in order, before it goes on.

    Args:
        folder: the sweep's.
        jobs: as recorded.
        retry: run failed jobs again.
    """
    for job in jobs:
        before = job.state
        ended = folder.run(job.name).read_status().get("state") in SUCCEEDED
        if job.state == "running" or (job.state == "waiting" and ended):
            judge(job, folder.run(job.name), None)
        if job.state not in FINISHED or (job.state == "failed" and (retry or before == "running")):
            job.state = "waiting"
        if job.state != before:
            folder.ledger.write(job)


def _plain(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _reason(status: dict[str, Any], exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"killed by {name}" + (", perhaps for lack of memory" if name == "SIGKILL" else "")
    if status.get("state") == "failed" and status.get("error"):
        return str(status["error"])
    return f"ended with exit code {exit_code}, without a result"


def _seconds(job: Job) -> float:
    assert job.started is not None
    assert job.finished is not None
    return (datetime.fromisoformat(job.finished) - datetime.fromisoformat(job.started)).total_seconds()
