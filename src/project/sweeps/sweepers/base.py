"""What our sweepers share: a sweep's folder from its first job to its closing table."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, read_write

from project.config import resume
from project.config.suggestions import explain_composition
from project.errors import InputError
from project.runs.create import discard
from project.runs.provenance import now
from project.runs.sweep_folder import SweepFolder, create
from project.runs.sweep_jobs import FINISHED, Job, quoted
from project.runtime.secrets import restore
from project.runtime.signals import exit_code
from project.runtime.yaml_files import SEARCH_PATH, config_folders
from project.sweeps.compose import Composer, loader_of
from project.sweeps.job_table import best_line, jobs_table, points_table, write_csv, written_if_possible
from project.sweeps.launchers.base import ListSource, StreamingLauncher, targets_of, view_of
from project.sweeps.scheduler import Source, compose_job, judge, refuse_problems, settle

OWN_KEYS = ("seeds", "folds", "retry_failed", "resume")
"""Keys for the sweep, which mean nothing to a job."""
APART = "put ${hydra:job.num} into it, or leave it out"
MOST_PROBLEMS = 10
MOST_ROWS = 40


class SweepFailedError(RuntimeError):
    """Jobs failed, or the sweep was stopped before its end.

    Args:
        message: how many, and what to do.
        exit_code: for the process.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class RecordedSweeper(Sweeper):
    """A sweeper whose every job is on record, so that the sweep can be ended at any moment and go on later.

    Args:
        changed_code: go on although the code is not what the sweep began with.
    """

    config: DictConfig  # set up before anything else is called
    seeds: int
    folds: int | None

    def __init__(self, changed_code: bool = False) -> None:
        self.changed_code = changed_code
        self.launcher: Launcher | None = None
        self.expected = 0

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See `hydra.plugins.sweeper.Sweeper`."""
        self.context = hydra_context
        self.function = task_function
        self.config = config

    def sweep(self, arguments: Sequence[str]) -> None:
        """Run a sweep, or what is left of one.

        Args:
            arguments: overrides of the command line, with choices.

        Raises:
            InputError: an override or a job's configuration is wrong.
            SweepFailedError: jobs failed, or the sweep was stopped.
        """
        overrides = self._without_own_keys(arguments)
        with self._folder(arguments) as folder, folder.locked():
            self.folder = folder
            self._freeze(folder)
            self._refuse_left_behind(folder)
            jobs = list(folder.ledger.read().values())
            if resume.continued_sweep is not None:
                if not self.changed_code:
                    folder.refuse_changed_code()
                for job in jobs:
                    job.overrides = restore(job.overrides, resume.continued_sweep.given)
                settle(folder, jobs, retry=resume.continued_sweep.retry)
            stopped = self.run_jobs(overrides, jobs)
            self.conclude(folder, stopped)

    @abstractmethod
    def run_jobs(self, overrides: Sequence[str], jobs: list[Job]) -> int:
        """Run what is left to run.

        Args:
            overrides: of the command line, with choices.
            jobs: that are on record already.

        Returns:
            The signal that stopped the sweep, 0 if none did.
        """

    def summary(self, folder: SweepFolder) -> str:
        """What a kind of sweep adds below the table of its jobs."""
        return ""

    def _without_own_keys(self, arguments: Sequence[str]) -> list[str]:
        parsed = OverridesParser.create().parse_overrides(list(arguments))
        for override in parsed:
            if override.key_or_group in OWN_KEYS and override.is_sweep_override():
                raise InputError(f"{override.input_line}: give one value; this key says how to sweep")
        if any(text.startswith("hydra.sweep.subdir=") for text in self.config.hydra.overrides.hydra):
            raise InputError("hydra.sweep.subdir: jobs' folders bear their number and values; leave it out")
        return [override.input_line or "" for override in parsed if override.key_or_group not in OWN_KEYS]

    def run_list(self, jobs: list[Job], targets: Sequence[str]) -> int:
        """Run known jobs on the launcher, whichever it is.

        Returns:
            The signal that stopped the sweep, 0 if none did.
        """
        if not isinstance(self.launcher, StreamingLauncher):
            self._run_elsewhere(jobs)
            return 0
        return self.stream(ListSource(jobs), jobs, len(jobs), targets)

    def stream(self, source: Source, jobs: Sequence[Job], expected: int, targets: Sequence[str]) -> int:
        """Run jobs one by one as they come, on a launcher of ours.

        Args:
            source: of the jobs.
            jobs: that are on record already.
            expected: number of all jobs.
            targets: dotted names of what jobs instantiate.

        Returns:
            The signal that stopped the sweep, 0 if none did.
        """
        assert isinstance(self.launcher, StreamingLauncher)
        self.expected = expected
        view = view_of(self.folder, self.config, expected, self.seeds * (self.folds or 1))
        view.continued(jobs)
        left = sum(job.state == "waiting" for job in jobs)
        done = f", {len(jobs) - left} of them finished before" if len(jobs) > left else ""
        view.say(f"sweep of {expected} jobs{done}, in {self.folder.shown}")
        try:
            return self.launcher.run(self.folder, source, view, targets)
        finally:
            view.close()

    def checked(self, jobs: Sequence[Job]) -> list[str]:
        """Compose and check the jobs that wait, all of them before the first one starts.

        Returns:
            Dotted names of what they instantiate.

        Raises:
            InputError: what is wrong, a line each.
        """
        if isinstance(self.launcher, StreamingLauncher):
            composer = self.launcher.composer  # what it composes here serves the jobs too
        else:
            composer = Composer(self.loader, self.config)
        name = self.config.hydra.job.config_name
        problems: dict[str, list[Job]] = {}
        places: dict[Path, Job] = {}
        targets: set[str] = set()
        needs: dict[str, DictConfig] = {}
        waiting = [job for job in jobs if job.state == "waiting"]
        for job in waiting:
            try:
                config = compose_job(composer, self.folder, job, job.overrides)
            except HydraException as error:
                lines = explain_composition(error, job.overrides, self.folder.conf, name)
                raise InputError("\n".join(lines)) from error
            try:
                for output in refuse_problems(config):
                    if places.setdefault(output.place, job) is not job:
                        line = f"{output.told}: all jobs would write there; {APART}"
                        problems.setdefault(line, []).append(job)
            except InputError as error:
                for line in str(error).splitlines():
                    problems.setdefault(line, []).append(job)
            targets |= set(targets_of(OmegaConf.to_container(config)))
            needs.setdefault(str(config.get("trainer", {})), config)
        if problems:
            lines = [
                line if len(affected) == len(waiting) else f"job {affected[0].number}: {line}"
                for line, affected in list(problems.items())[:MOST_PROBLEMS]
            ]
            more = len(problems) - len(lines)
            raise InputError("\n".join(lines + ([f"… and {more} more problems"] if more else [])))
        if isinstance(self.launcher, StreamingLauncher):  # last: this may import torch
            for config in needs.values():
                self.launcher.need(config)
        return sorted(targets)

    def conclude(self, folder: SweepFolder, stopped: int) -> None:
        """Print and write the tables, and say how the sweep ended.

        Raises:
            SweepFailedError: not all jobs are done.
        """
        jobs = list(folder.ledger.read().values())
        monitor, mode = str(self.config.get("monitor", "value")), str(self.config.get("mode", "max"))
        unrecorded = folder.ledger.outage
        with written_if_possible(folder.shown):
            write_csv(folder.path / "jobs.csv", jobs)
        shown = jobs[-MOST_ROWS:]
        print(f"\n{jobs_table(shown, monitor)}")
        if len(shown) < len(jobs):
            print(f"… the last {MOST_ROWS} of {len(jobs)} jobs; all of them: {folder.shown}/jobs.csv")
        best = best_line(jobs, monitor, mode) if len(jobs) > 1 else ""
        for text in (points_table(jobs, monitor, mode), best, self.summary(folder)):
            if text:
                print(f"\n{text}")
        if unrecorded:
            raise SweepFailedError(
                f"{folder.ledger.file}: what became of the jobs could not be recorded ({unrecorded}); make "
                f"room, and resume={folder.shown} takes it from the jobs' folders",
                1,
            )
        print(f"\ncompare them: python scripts/compare.py {folder.shown}")
        print(f"look at them: tensorboard --logdir {folder.shown}")
        failed = [job for job in jobs if job.state == "failed"]
        left = sum(job.state not in FINISHED for job in jobs)
        if stopped or left:
            code = exit_code(stopped) if stopped else 1
            if stopped:  # jobs that nobody has asked for yet
                left += max(0, self.expected - len(jobs))
            total = max(len(jobs), self.expected)
            raise SweepFailedError(f"{left} of {total} jobs are left; resume={folder.shown} goes on", code)
        if failed:
            raise SweepFailedError(
                f"{len(failed)} of {len(jobs)} jobs failed; "
                f"resume={folder.shown} retry_failed=true runs them again",
                1,
            )

    @contextmanager
    def _folder(self, arguments: Sequence[str]) -> Iterator[SweepFolder]:
        """The folder to work in: an earlier sweep's, or a new one that goes again if no job could start."""
        if resume.continued_sweep is not None:
            yield resume.continued_sweep.folder
            return
        sources = config_folders(self.config.hydra.runtime.config_sources)
        hydra = OmegaConf.to_container(self.config.hydra.overrides.hydra, resolve=False)
        assert isinstance(hydra, list)
        everything = [*map(str, hydra), *arguments]
        folder = create(self.config.hydra.sweep.dir, sources, everything, self.config.hydra.job.config_name)
        try:
            yield folder
        except BaseException:
            if not folder.ledger.file.exists():
                discard(folder.path)
            raise

    def _freeze(self, folder: SweepFolder) -> None:
        """Work from the configuration files as they were when the sweep began."""
        with read_write(self.config.hydra):
            self.config.hydra.sweep.dir = str(folder.path)
            if self.config.hydra.searchpath:  # whose files are in the sweep's folder by now
                given = self.config.hydra.overrides.hydra
                kept = [text for text in given if not text.startswith(SEARCH_PATH)]
                self.config.hydra.overrides.hydra = [*kept, f"{SEARCH_PATH}[]"]
        self.loader = loader_of(self.context.config_loader, str(folder.conf.absolute()))
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(config_loader=self.loader, callbacks=self.context.callbacks),
            task_function=self.function,
            config=self.config,
        )

    def _refuse_left_behind(self, folder: SweepFolder) -> None:
        """Jobs that were submitted to a cluster may run there still."""
        submitted = folder.path / ".submitit"
        if submitted.exists() and "Slurm" not in type(self.launcher).__name__:
            raise InputError(
                f"resume={folder.shown}: SLURM may still run jobs of this sweep; go on with "
                f"hydra/launcher=slurm, or see that they have ended and remove {submitted}"
            )

    def _run_elsewhere(
        self, jobs: Sequence[Job], overrides: Callable[[Job], list[str]] = lambda job: job.overrides
    ) -> None:
        """Run jobs by a launcher that is not ours: all of them in one call, and a record when it returns."""
        assert self.launcher is not None
        waiting = [job for job in jobs if job.state == "waiting"]
        folder = f"hydra.sweep.dir={quoted(str(self.folder.path.absolute()))}"
        names = [[*overrides(job), folder, f"hydra.sweep.subdir={quoted(job.name)}"] for job in waiting]
        first = waiting[0].number if waiting else 0
        for job, returned in zip(waiting, self.launcher.launch(names, initial_job_idx=first), strict=True):
            settle_returned(job, returned)
            status = self.folder.run(job.name).read_status()
            if status.get("state") in FINISHED:  # one of our runs, which knows more
                judge(job, self.folder.run(job.name), None)
                job.duration_s = status.get("duration_s")
            self.folder.ledger.write(job)


def settle_returned(job: Job, returned: JobReturn) -> None:
    """Take over what another launcher says of a job."""
    job.finished, job.attempts = now(), job.attempts + 1
    value = returned._return_value
    if returned.status is JobStatus.COMPLETED:
        job.state = "done"
        job.value = float(value) if isinstance(value, int | float) else None
    else:
        job.state, job.error = "failed", f"{type(value).__name__}: {value}"
