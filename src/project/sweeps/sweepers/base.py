"""Base class of sweepers: the sweep's folder, the checks before the first job, and the final tables."""

import shlex
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, read_write

from project.config import allowed_targets
from project.config.source_index import source_files, with_own_imports
from project.config.suggestions import explain_composition
from project.errors import InputError
from project.runs.folders import discard
from project.runs.sweep_folder import SweepFolder, create
from project.runs.sweep_jobs import FINISHED, Job
from project.runtime.console import fact_block
from project.runtime.output_files import probe
from project.runtime.process import as_called, command_state
from project.runtime.secrets import restore
from project.runtime.signals import exit_code, postpone_exit
from project.runtime.text import plural
from project.runtime.yaml_files import SEARCH_PATH, config_folders
from project.sweeps.compose import compose_job, loader_for_folder, refuse_problems
from project.sweeps.job_claims import OWNER, JobClaims, JoinedJobs, JoinedLedger
from project.sweeps.job_order import AS_WRITTEN
from project.sweeps.job_scheduler import JobSource, reconcile_jobs
from project.sweeps.job_table import (
    best_job,
    best_line,
    count_states,
    results_table,
    training_command,
    warn_if_unwritable,
    write_jobs,
)
from project.sweeps.launchers.base import ScheduledLauncher, ThirdPartyLauncher
from project.sweeps.live_view import LiveView

OWN_KEYS = ("seeds", "folds", "retry_failed", "resume", "join")
"""Keys of the sweep that its jobs do not receive."""
SHARED_PATH_REMEDY = "put ${hydra:job.num} into it, or leave it out"
MAX_PROBLEMS = 10


class SweepFailedError(RuntimeError):
    """Jobs failed, or the sweep stopped before its end."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class RecordedSweeper(Sweeper):
    """Sweeper that records every job, so that a killed sweep can be resumed."""

    config: DictConfig  # set before anything else is called
    batch: int | None = None
    """Jobs per call of a third-party launcher (None: all)."""
    can_be_joined = False
    """True if all jobs are known when the sweep starts, so that other processes can run some of them."""
    order = AS_WRITTEN
    """Order in which jobs start that are known when the sweep starts."""

    def __init__(self, seeds: int, folds: int | None, changed_code: bool) -> None:
        self.seeds = seeds
        self.folds = folds
        self.changed_code = changed_code
        self.num_jobs = 0
        self.extension: list[str] = []  # overrides that add jobs to a resumed sweep

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context = hydra_context
        self.function = task_function
        self.config = config

    def sweep(self, arguments: Sequence[str]) -> None:
        """Run a sweep, or the remaining jobs of a resumed sweep.

        Raises:
            InputError: an override or a job's configuration is wrong.
            SweepFailedError: jobs failed, or the sweep was stopped.
        """
        overrides = self._without_own_keys(arguments)
        if (continued := command_state.resumed_sweep) is not None and continued.join:
            self._join(continued.folder, continued.given)
            return
        with self._open_folder(arguments) as folder, folder.locked():
            self.folder = folder
            self._freeze_config()
            self._refuse_changed_launcher()
            jobs = list(folder.ledger.read().values())
            if continued is None:
                stopped = self.run_jobs(overrides, jobs)
            else:
                self._refuse_lost_jobs(jobs)
                self.extension = continued.extension
                if self.extension:
                    self.refuse_extension(jobs)
                if not self.changed_code:
                    folder.refuse_changed_code()
                for job in jobs:
                    job.overrides = restore(job.overrides, continued.given)
                with folder.explain_unwritable():
                    is_complete = all(job.state in FINISHED for job in jobs)
                    if self.extension or continued.kept or continued.retry or not is_complete:
                        probe(folder.path)
                    reconcile_jobs(folder, jobs, retry_failed=continued.retry)
                    stopped = self.run_jobs(overrides, jobs)
            self._report_results(stopped)

    def _refuse_lost_jobs(self, jobs: Sequence[Job]) -> None:
        """Refuse to resume a sweep whose ledger lacks jobs, which would otherwise be replaced by others.

        A search starts jobs also while the ledger cannot be written, and therefore may lack a few.
        """
        lost = self.folder.unrecorded_jobs() if self.can_be_joined or not jobs else []
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise InputError(
                f"resume={self.folder.shown}: {self.folder.ledger.file.name} is missing or incomplete "
                f"(expected a line for each job folder, got none for {lost[0]}{more}); restore the file, or "
                "start a new sweep; compare and report read the results from the folders"
            )

    @abstractmethod
    def run_jobs(self, overrides: Sequence[str], jobs: list[Job]) -> int:
        """Run the remaining jobs.

        Returns:
            The signal that stopped the sweep, 0 if none did.
        """

    def refuse_extension(self, jobs: Sequence[Job]) -> None:
        """Refuse an extension that this sweeper does not support.

        Args:
            jobs: jobs on record.

        Raises:
            InputError: always, unless a sweeper overrides this method.
        """
        raise InputError(
            f"{self.extension[0]}: jobs cannot be added to {self.folder.shown}; leave this out, or start a "
            "new sweep"
        )

    def refuse_config(self, config: DictConfig) -> None:
        """Refuse a job's configuration with which the sweeper cannot work.

        Raises:
            InputError: the configuration and the sweeper's options do not fit.
        """

    def refuse_space(self) -> None:
        """Refuse the values of all jobs together, each of which is right.

        Raises:
            InputError: the sweeper cannot work with jobs that differ in this way.
        """

    def summarize(self) -> str:
        """Return text to print below the final tables."""
        return ""

    def best_commands(self, best: Job) -> dict[str, str]:
        """Return commands to print for the best job, by their purpose."""
        return {"train it": training_command(best, self.folder.read_command())}

    def run_source(
        self, source: JobSource, jobs: Sequence[Job], num_jobs: int, targets: Sequence[str]
    ) -> int:
        """Run the jobs of a source.

        Args:
            source: source of the jobs.
            jobs: jobs on record.
            num_jobs: number of jobs of the sweep, including those that the source has not supplied yet.
            targets: dotted names of the classes in the jobs' configurations.

        Returns:
            The signal that stopped the sweep, 0 if none did.
        """
        self.num_jobs = num_jobs
        continued = command_state.resumed_sweep
        if continued is not None and (continued.extension or continued.kept):
            self.folder.record_extension([*continued.extension, *continued.kept], continued.kept)
        view = LiveView.from_config(self.folder, self.config, num_jobs, self.seeds * (self.folds or 1))
        view.count_earlier(jobs)
        finished = sum(job.state != "waiting" for job in jobs)
        done = f", {finished} of them finished before" if finished else ""
        view.print(f"sweep of {plural(num_jobs, 'job')}{done}, in {self.folder.shown}")
        claims = JobClaims(self.folder.path, OWNER) if self.can_be_joined else None
        self.scheduled_launcher.claims = claims
        try:
            with claims.active() if claims else nullcontext():
                return self.scheduled_launcher.run(self.folder, source, view, targets)
        finally:
            view.close()

    def _join(self, folder: SweepFolder, given: Sequence[str]) -> None:
        """Run jobs of a sweep that another process runs, until none is left."""
        if not self.can_be_joined:
            raise InputError(
                f"join=true: {folder.shown} chooses its jobs while it runs; searches on several machines "
                "share hydra.sweeper.storage and hydra.sweeper.study"
            )
        self.folder = folder
        self._freeze_config()
        if not self.changed_code:
            folder.refuse_changed_code()
        claims = JobClaims(folder.path)
        with claims.active():
            if not claims.is_alive(OWNER):
                raise InputError(
                    f"join=true: {folder.shown} is not running; leave it out to resume the sweep"
                )
            jobs = list(folder.ledger.read().values())
            for job in jobs:
                job.overrides = restore(job.overrides, given)
            targets = self.check_jobs(jobs)
            folder.ledger = JoinedLedger(folder.ledger.file, claims)
            folder.log_file = folder.path / f"sweep.{claims.worker}.log"
            view = LiveView.from_config(folder, self.config, len(jobs), self.seeds * (self.folds or 1))
            view.count_earlier(jobs)
            view.print(f"joined the sweep of {plural(len(jobs), 'job')} in {folder.shown}")
            source = JoinedJobs(folder, claims, jobs, self.order)
            self.scheduled_launcher.claims = claims
            try:
                stopped = self.scheduled_launcher.run(folder, source, view, targets)
            finally:
                view.close()
        print(f"\n{count_states(source.taken)}; the sweep's own process prints the results")
        if stopped:
            raise SweepFailedError(
                f"stopped; {folder.shown} runs the unfinished jobs elsewhere", exit_code(stopped)
            )

    def compose(self, job: Job) -> DictConfig:
        """Compose a job's configuration.

        Raises:
            InputError: an override is wrong.
        """
        try:
            return compose_job(self.scheduled_launcher.composer, self.folder, job, job.overrides)
        except HydraException as error:
            name = self.config.hydra.job.config_name
            lines = explain_composition(error, job.overrides, self.folder.conf, name)
            raise InputError("\n".join(lines)) from error

    def check_jobs(self, jobs: Sequence[Job]) -> list[str]:
        """Compose and check the waiting jobs, all of them before the first one starts.

        Returns:
            Dotted names of the classes in the jobs' configurations.

        Raises:
            InputError: a configuration is wrong, or the sweep is resumed and source files of the user's
                packages changed.
        """
        problems: dict[str, list[Job]] = {}
        outputs: dict[Path, Job] = {}
        targets: set[str] = set()
        trainers: dict[str, DictConfig] = {}
        waiting = [job for job in jobs if job.state == "waiting"]
        for job in waiting:
            config = self.compose(job)
            try:
                for output in refuse_problems(config):
                    if outputs.setdefault(output.place, job) is not job:
                        line = f"{output.shown}: all jobs would write there; {SHARED_PATH_REMEDY}"
                        problems.setdefault(line, []).append(job)
                self.refuse_config(config)
            except InputError as error:
                for line in str(error).splitlines():
                    problems.setdefault(line, []).append(job)
            targets |= {str(name) for _, name in allowed_targets.find(OmegaConf.to_container(config), "")}
            trainers.setdefault(str(config.get("trainer", {})), config)
        if problems:
            lines = [
                line if len(affected) == len(waiting) else f"job {affected[0].number}: {line}"
                for line, affected in list(problems.items())[:MAX_PROBLEMS]
            ]
            if more := len(problems) - len(lines):
                lines.append(f"… and {plural(more, 'more problem')}")
            raise InputError("\n".join(lines))
        self.refuse_space()
        for config in trainers.values():  # last: this may import torch
            self.scheduled_launcher.request_devices(config)
        own = {name: source_files(name) for name in with_own_imports(allowed_targets.own_packages(targets))}
        is_resumed = command_state.resumed_sweep is not None
        self.folder.record_own_code(own, is_checked=is_resumed and not self.changed_code)
        return sorted(targets)

    def _without_own_keys(self, arguments: Sequence[str]) -> list[str]:
        parsed = OverridesParser.create().parse_overrides(list(arguments))
        for override in parsed:
            if override.key_or_group in OWN_KEYS and override.is_sweep_override():
                raise InputError(
                    f"{override.input_line}: a key of the sweep, not of its jobs; give one value"
                )
        if any(text.startswith("hydra.sweep.subdir=") for text in self.config.hydra.overrides.hydra):
            raise InputError(
                "hydra.sweep.subdir: job folders are named after the jobs' numbers and values; leave it out"
            )
        return [override.input_line or "" for override in parsed if override.key_or_group not in OWN_KEYS]

    @contextmanager
    def _open_folder(self, arguments: Sequence[str]) -> Iterator[SweepFolder]:
        """Open the folder of a resumed sweep, or create one and discard it if no job starts."""
        if command_state.resumed_sweep is not None:
            yield command_state.resumed_sweep.folder
            return
        hydra = self.config.hydra
        given = [*map(str, hydra.overrides.hydra), *arguments]
        with postpone_exit():
            folder = create(
                hydra.sweep.dir, config_folders(hydra.runtime.config_sources), given, hydra.job.config_name
            )
        try:
            yield folder
        except BaseException:
            if not folder.ledger.file.exists():
                discard(folder.path)
            raise

    def _freeze_config(self) -> None:
        """Use the sweep's own copies of the configuration files, made when it began."""
        with read_write(self.config.hydra):
            self.config.hydra.sweep.dir = str(self.folder.path)
            if self.config.hydra.searchpath:  # its files were copied to the sweep's folder
                given = self.config.hydra.overrides.hydra
                kept = [text for text in given if not text.startswith(SEARCH_PATH)]
                self.config.hydra.overrides.hydra = [*kept, f"{SEARCH_PATH}[]"]
        self.loader = loader_for_folder(self.context.config_loader, str(self.folder.conf.absolute()))
        context = HydraContext(config_loader=self.loader, callbacks=self.context.callbacks)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=self.function, config=self.config
        )
        if not isinstance(launcher, ScheduledLauncher):
            launcher = ThirdPartyLauncher(launcher, self.batch)
            launcher.setup(hydra_context=context, task_function=self.function, config=self.config)
        self.scheduled_launcher = launcher

    def _refuse_changed_launcher(self) -> None:
        """Refuse a change of launcher while SLURM may still run jobs of the sweep."""
        submitted = self.folder.path / ".submitit"
        if submitted.exists() and "Slurm" not in type(self.scheduled_launcher).__name__:
            raise InputError(
                f"resume={self.folder.shown}: SLURM may still run jobs of this sweep; resume it with "
                f"hydra/launcher=slurm, or wait until they end and remove {submitted}"
            )

    def _report_results(self, stopped: int) -> None:
        """Print and write the final tables; raise an error unless all jobs are done."""
        folder = self.folder
        jobs = list(folder.ledger.read().values())
        monitor, mode = str(self.config.get("monitor", "value")), str(self.config.get("mode", "max"))
        unrecorded = folder.ledger.outage
        with warn_if_unwritable(folder.shown):
            write_jobs(folder.path / "jobs.csv", jobs)
        print(f"\n{results_table(jobs, monitor, mode)}\n\n{count_states(jobs)}")
        if summary := self.summarize():
            print(f"\n{summary}")
        if unrecorded:
            raise SweepFailedError(
                f"{folder.ledger.file}: the results could not be recorded ({unrecorded}); free space, and "
                f"resume={folder.shown} reads them from the jobs' folders",
                1,
            )
        shown = shlex.quote(folder.shown)
        facts = {"all jobs": f"{folder.shown}/jobs.csv"}
        if best := best_job(jobs, mode):
            text, _, ties = best_line(jobs, monitor, mode).partition("; ")
            facts = {"best": text, "ties": ties} | self.best_commands(best) | facts
            facts = {name: fact for name, fact in facts.items() if fact}
        facts["compare"] = as_called(f"python scripts/compare.py {shown}")
        facts["curves"] = f"tensorboard --logdir {shown}"
        print(f"\n{fact_block(facts)}")
        total = max(len(jobs), self.num_jobs)
        left = sum(job.state not in FINISHED for job in jobs)
        if stopped:  # includes jobs that the source has not supplied yet
            left += total - len(jobs)
        failed = sum(job.state == "failed" for job in jobs)
        if stopped or left:
            message = f"{left} of {plural(total, 'job')} left; resume={folder.shown} runs the rest"
            if failed:
                message += f"; {failed} failed: add retry_failed=true to run them again"
            raise SweepFailedError(message, exit_code(stopped) if stopped else 1)
        if failed:
            raise SweepFailedError(
                f"{failed} of {plural(len(jobs), 'job')} failed; resume={folder.shown} retry_failed=true "
                "runs failed jobs again",
                1,
            )
