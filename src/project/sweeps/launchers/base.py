"""Base class of launchers that use the scheduler, and an adapter for third-party launchers.

A new launcher also needs an entry in `hydra_plugins/project_sweeps.py`.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from project.config.hydra_patches import make_job_return, outcome_of
from project.runs.run_folder import RunFolder
from project.runs.sweep_folder import SweepFolder
from project.runs.sweep_jobs import SUCCEEDED, Job, folder_name, quote_override
from project.runtime.output_files import refuse_unwritable_output
from project.sweeps.compose import Composer
from project.sweeps.device_slots import DeviceRequest
from project.sweeps.engine import Engine, JobExit
from project.sweeps.job_claims import JobClaims, SharedEngine
from project.sweeps.job_process import JobSpec, TaskReference, write_result
from project.sweeps.job_scheduler import JobList, JobSource, Scheduler
from project.sweeps.live_view import LiveView


class ScheduledLauncher(Launcher):
    """Base class of launchers whose jobs are started one by one by the scheduler."""

    claims: JobClaims | None = None
    """Claims of this process, if others may run jobs of the sweep, too; the sweeper sets them."""

    def __init__(self, fail_fast: bool = False, grace_s: float = 30.0) -> None:
        self.fail_fast = fail_fast
        self.grace_s = grace_s

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.function = task_function
        self.config = config
        self.composer = Composer(hydra_context.config_loader, config)

    @abstractmethod
    def make_engine(self, num_jobs: int, targets: Iterable[str]) -> Engine:
        """Create the engine for `num_jobs` jobs, whose configurations name the classes `targets`."""

    @abstractmethod
    def request_devices(self, config: DictConfig) -> DeviceRequest:
        """Derive a job's devices from its configuration."""

    def run(self, folder: SweepFolder, source: JobSource, view: LiveView, targets: Iterable[str]) -> int:
        """Run all jobs of a source.

        Returns:
            The signal that stopped the sweep, 0 if none did.
        """
        engine = self.make_engine(view.num_jobs, targets)
        scheduler = Scheduler(
            folder,
            self.composer,
            engine if self.claims is None else SharedEngine(engine, self.claims),
            TaskReference.to(self.function),
            self.request_devices,
            view,
            fail_fast=self.fail_fast,
            grace_s=self.grace_s,
        )
        return scheduler.run(source)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs for a third-party sweeper."""
        folder = SweepFolder(self.config.hydra.sweep.dir)
        refuse_unwritable_output(f"hydra.sweep.dir={folder.path}", folder.path, folder=True)
        folder.path.mkdir(parents=True, exist_ok=True)
        jobs = [
            Job(number, list(overrides), list(overrides), folder_name(number, []))
            for number, overrides in enumerate(job_overrides, start=initial_job_idx)
        ]
        folder.ledger.write(*jobs)
        view = LiveView.from_config(folder, self.config, len(jobs))
        if stopped := self.run(folder, JobList(jobs, is_checked=False), view, ()):
            raise SystemExit(128 + stopped)
        return [_job_return(job, folder) for job in jobs]


def _job_return(job: Job, folder: SweepFolder) -> JobReturn:
    is_completed = job.state in SUCCEEDED
    outcome = job.value if is_completed else RuntimeError(f"job {job.number} {job.state}: {job.error}")
    return make_job_return(job.overrides, str(folder.path / job.name), outcome, completed=is_completed)


class ThirdPartyLauncher(ScheduledLauncher):
    """Adapter of a third-party launcher, which gets `batch` jobs (None: all) per call."""

    def __init__(self, launcher: Launcher, batch: int | None) -> None:
        super().__init__()
        self.launcher = launcher
        self.batch = batch

    def make_engine(self, num_jobs: int, targets: Iterable[str]) -> Engine:
        return BatchEngine(self.launcher, self.batch)

    def request_devices(self, config: DictConfig) -> DeviceRequest:
        return DeviceRequest(1)


class BatchEngine(Engine):
    """Collect jobs and run them in one call of a third-party launcher."""

    handles_signals = False

    def __init__(self, launcher: Launcher, batch: int | None) -> None:
        self.launcher = launcher
        self.batch = math.inf if batch is None else batch
        self._collected: list[JobSpec] = []

    def has_capacity(self) -> bool:
        return len(self._collected) < self.batch

    def start(self, spec: JobSpec) -> bool:
        self._collected.append(spec)
        return True

    def wait(self, timeout_s: float) -> list[JobExit]:
        specs, self._collected = self._collected, []
        if not specs:
            return []
        returned = self.launcher.launch(list(map(_overrides, specs)), initial_job_idx=specs[0].number)
        return [_take_result(spec, result) for spec, result in zip(specs, returned, strict=True)]

    def interrupt(self) -> None:
        pass  # `wait` returns only when all jobs have ended

    def kill(self) -> None:
        pass


def _overrides(spec: JobSpec) -> list[str]:
    """Return a job's overrides, including its folder and the checkpoint to resume from."""
    checkpoint = spec.config.get("ckpt_path")
    return [
        *spec.overrides,
        *([f"ckpt_path={quote_override(checkpoint)}"] if checkpoint else []),
        f"hydra.sweep.dir={quote_override(str(spec.folder.parent))}",
        f"hydra.sweep.subdir={quote_override(spec.folder.name)}",
    ]


def _take_result(spec: JobSpec, result: JobReturn) -> JobExit:
    run = RunFolder(spec.folder)
    write_result(run, result)
    status = run.read_status()
    is_completed = result.status is JobStatus.COMPLETED
    if not is_completed and status.get("state") == "starting":
        error = outcome_of(result)
        run.write_status(state="failed", error=f"{type(error).__name__}: {error}")
    return JobExit(spec.number, 0 if is_completed else 1, status.get("duration_s"))
