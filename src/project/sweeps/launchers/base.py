"""What our launchers share: they hand out an engine, and serve Hydra's other sweepers batch by batch."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from project.runs.sweep_folder import SweepFolder
from project.runs.sweep_jobs import SUCCEEDED, Job, folder_name
from project.runtime.write_probe import refuse_unwritable_output
from project.sweeps.compose import Composer
from project.sweeps.device_slots import Need
from project.sweeps.job_process import Task
from project.sweeps.live_view import View
from project.sweeps.process_engine import Engine
from project.sweeps.scheduler import Dispatcher, Source


class StreamingLauncher(Launcher):
    """A launcher that starts jobs one by one as there is room for them.

    Args:
        fail_fast: stop the sweep when a job fails.
        grace_s: seconds that jobs have to stop when the sweep is stopped.
    """

    def __init__(self, fail_fast: bool = False, grace_s: float = 30.0) -> None:
        self.fail_fast = fail_fast
        self.grace_s = grace_s

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See `hydra.plugins.launcher.Launcher`."""
        self.loader: ConfigLoader = hydra_context.config_loader
        self.function = task_function
        self.config = config
        self.composer = Composer(self.loader, config)

    @abstractmethod
    def engine(self, expected: int, targets: Iterable[str]) -> Engine:
        """Make what runs the jobs.

        Args:
            expected: number of jobs.
            targets: dotted names of what their configurations instantiate.
        """

    @abstractmethod
    def need(self, config: DictConfig) -> Need:
        """What devices a job takes.

        Raises:
            InputError: there are not as many.
        """

    def run(self, folder: SweepFolder, source: Source, view: View, targets: Iterable[str]) -> int:
        """Run all jobs of a source.

        Returns:
            The signal that stopped the sweep, 0 if none did.
        """
        engine = self.engine(view.jobs, targets)
        dispatcher = Dispatcher(
            folder,
            self.composer,
            engine,
            Task.of(self.function),
            self.need,
            view,
            fail_fast=self.fail_fast,
            grace_s=self.grace_s,
        )
        return dispatcher.run(source)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs for a sweeper that is not ours."""
        folder = SweepFolder(self.config.hydra.sweep.dir)
        refuse_unwritable_output(f"hydra.sweep.dir={folder.path}", folder.path, folder=True)
        folder.path.mkdir(parents=True, exist_ok=True)
        jobs = [
            Job(number, list(overrides), list(overrides), folder_name(number, []))
            for number, overrides in enumerate(job_overrides, start=initial_job_idx)
        ]
        view = view_of(folder, self.config, len(jobs))
        folder.ledger.write(*jobs)
        if stopped := self.run(folder, ListSource(jobs, checked=False), view, ()):
            raise SystemExit(128 + stopped)
        return [_returned(job, folder.path / job.name) for job in jobs]


class ListSource:
    """Jobs that are known from the start.

    Args:
        jobs: those that wait are run.
        checked: their configurations have proved right already.
    """

    def __init__(self, jobs: Iterable[Job], *, checked: bool = True) -> None:
        self.checked = checked
        self._waiting = iter([job for job in jobs if job.state == "waiting"])

    def next(self) -> Job | None:
        """See `Source`."""
        return next(self._waiting, None)

    def overrides(self, job: Job) -> list[str]:
        """See `Source`."""
        return job.overrides

    def ended(self, job: Job) -> None:
        """See `Source`."""


def view_of(folder: SweepFolder, config: DictConfig, jobs: int, repetitions: int = 1) -> View:
    """The view of a sweep of our training runs, or of anything else without a monitor."""
    return View(
        folder.log_file,
        jobs,
        str(OmegaConf.select(config, "monitor", default="value")),
        str(OmegaConf.select(config, "mode", default="max")),
        lambda job: folder.run(job.name).read_status().get("progress") or {},
        repetitions,
    )


def targets_of(config: Any) -> Iterator[str]:
    """Dotted names of all that a plain configuration instantiates."""
    if isinstance(config, dict):
        if isinstance(name := config.get("_target_"), str):
            yield name
        for value in config.values():
            yield from targets_of(value)


def _returned(job: Job, folder: Path) -> JobReturn:
    completed = job.state in SUCCEEDED
    return JobReturn(
        overrides=job.overrides,
        working_dir=str(folder),
        status=JobStatus.COMPLETED if completed else JobStatus.FAILED,
        _return_value=job.value if completed else RuntimeError(f"job {job.number} {job.state}: {job.error}"),
    )
