"""The PBT sweeper, which trains a population whose worst members continue from copies of the best.

Decisions follow from the recorded values of a whole generation and from the seed alone, so that a resumed
sweep repeats them. `population` has the algorithm. A job keeps its values: a copy with new ones is a new job.
"""

import importlib
import shlex
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from omegaconf import DictConfig

from project.config.source_index import inherits
from project.errors import InputError
from project.runs.checkpoint_files import LAST, PREVIOUS, copy
from project.runs.config_diff import find_changes, find_reasons
from project.runs.optuna_studies import silence_optuna
from project.runs.sweep_folder import SweepFolder
from project.runs.sweep_jobs import FINISHED, Job
from project.runtime.atomic_files import reason_of
from project.runtime.bounds import Range
from project.runtime.process import as_called
from project.runtime.text import plural
from project.sweeps.compose import as_hydra_config, resolved_values
from project.sweeps.job_scheduler import TimeBudget
from project.sweeps.sweepers.base import RecordedSweeper
from project.sweeps.sweepers.grid import Point, make_jobs
from project.sweeps.sweepers.pausing import (
    clear_result,
    refuse_repetitions,
    refuse_unmeasured,
    score,
    values_of,
    with_pause,
)
from project.sweeps.sweepers.pbt_report import epochs_of, write_report
from project.sweeps.sweepers.population import Member, explore, select_members
from project.sweeps.sweepers.search_space import (
    SearchSpace,
    list_ends,
    parse_point,
    random_study,
    trial_overrides,
)

APPLIES_CHANGES = "project.modules.supervised.SupervisedModule"
"""Base class of tasks that apply changed options to the restored optimizer and schedule."""
HISTORY = "metrics.csv"
STATE_CHECK = "project.config.validation.changes"
"""Module that imports torch."""


class PbtSweeper(RecordedSweeper):
    """Population-based training.

    Args:
        population_size: number of members that train at any time.
        interval_epochs: epochs of a generation, after which members are compared.
        quantile_fraction: fraction of the members that copies of the best ones replace, and of those best.
        resample_prob: probability of sampling the value of a copy from its whole range, for each key.
        timeout_s: time since the first job after which no job starts or continues [s] (None: no limit).
        seed: seed of the values and decisions.
        params: additional parameters of the search space, in Hydra's grammar.
        only_if: conditions under which parameters apply (see `Conditions`).
        seeds: must be 1.
        folds: must be None.
        batch: simultaneous members with third-party launchers.
        changed_code: resume even if the code has changed since the sweep began.
    """

    def __init__(
        self,
        population_size: Annotated[int, Range(2)] = 8,
        interval_epochs: Annotated[int, Range(1)] = 3,
        quantile_fraction: Annotated[float, Range(above=0, high=0.5)] = 0.25,
        resample_prob: Annotated[float, Range(0, 1)] = 0.25,
        timeout_s: Annotated[float, Range(above=0)] | None = None,
        seed: Annotated[int, Range(0)] = 1,
        params: Mapping[str, Any] | None = None,
        only_if: Mapping[str, str] | None = None,
        seeds: Annotated[int, Range(1)] = 1,
        folds: Annotated[int, Range(2)] | None = None,
        batch: Annotated[int, Range(1)] = 1,
        changed_code: bool = False,
    ) -> None:
        super().__init__(seeds, folds, changed_code)
        refuse_repetitions("pbt", seeds, folds)
        silence_optuna()
        self.population_size = population_size
        self.interval_epochs = interval_epochs
        self.quantile_fraction = quantile_fraction
        self.resample_prob = resample_prob
        self.timeout_s = timeout_s
        self.seed = seed
        self.params = dict(params or {})
        self.only_if = dict(only_if or {})
        self.batch = batch
        self.max_epochs = 0  # set by `refuse_config`

    def run_jobs(self, overrides: Sequence[str], jobs: list[Job]) -> int:
        space = SearchSpace.parse(overrides, self.loader, self.params, self.only_if, "pbt")
        points = space.find_points()
        if points is not None and len(points) < self.population_size:
            raise InputError(
                f"hydra.sweeper.population_size={self.population_size}: the search space has "
                f"{plural(len(points), 'point')}, and equal members would train equally; lower it, or search "
                "more values"
            )
        self.space = space
        targets = self.check_jobs(space.corner_jobs())

        def check_states() -> None:
            if "torch" in sys.modules:  # imported for the jobs; otherwise each job checks its checkpoint
                self._refuse_fixed_keys(space, loads_states=True)

        source = PopulationSource(self, self.folder, space, jobs, check_states)
        return self.run_source(source, jobs, max(self.population_size, len(jobs)), targets)

    def refuse_config(self, config: DictConfig) -> None:
        max_epochs, interval = config.trainer.max_epochs, self.interval_epochs
        if self.max_epochs not in (0, max_epochs):
            raise InputError(
                f"trainer.max_epochs={max_epochs}: hydra/sweeper=pbt compares members after equal numbers of "
                f"epochs (expected {self.max_epochs}, as for other members); give one value"
            )
        if max_epochs % interval or max_epochs < 2 * interval:
            raise InputError(
                f"trainer.max_epochs={max_epochs}: hydra/sweeper=pbt trains whole generations (expected a "
                f"multiple of hydra.sweeper.interval_epochs={interval}, at least {2 * interval}); change one "
                "of them"
            )
        self.max_epochs = max_epochs
        refuse_unmeasured(config, "pbt", range(interval, max_epochs, interval))
        task = str(config.task._target_)
        if not inherits(task, APPLIES_CHANGES):
            raise InputError(
                f"task={task.rpartition('.')[2]}: hydra/sweeper=pbt changes values during training, which "
                f"Lightning does not apply to a restored optimizer (expected a subclass of {APPLIES_CHANGES}"
                "); use hydra/sweeper=asha"
            )

    def refuse_space(self) -> None:
        self._refuse_fixed_keys(self.space, loads_states=False)  # torch is not imported yet

    def _find_changes(self, space: SearchSpace) -> Iterator[tuple[str, DictConfig, DictConfig]]:
        """Yield each key with two of its values, and the configurations that differ in it."""

        def compose(values: Mapping[str, Any]) -> DictConfig:
            point = [*space.constant, *space.conditions.keep(trial_overrides(values))]
            return self.compose(Job(0, point, [], "probe"))

        ends = {key: list_ends(distribution) for key, distribution in space.distributions.items()}
        base = {key: values[0] for key, values in ends.items()}
        before = compose(base)
        for key, values in ends.items():
            for value in values[1:]:
                yield f"{key}={values[0]},{value}", before, compose(base | {key: value})

    def _refuse_fixed_keys(self, space: SearchSpace, *, loads_states: bool) -> None:
        """Refuse keys whose values a resumed run could not change either.

        Args:
            space: search space.
            loads_states: also load states of one configuration into another, which imports torch.

        Raises:
            InputError: the checkpoint of a member does not fit the configuration with another value.
        """
        for text, before, now in self._find_changes(space):
            both = resolved_values(before), resolved_values(now)
            changes = [*find_changes(*both), *find_changes(*reversed(both))]
            reason = next((f"{change}: {reason}" for change, reason in find_reasons(changes)), "")
            if not reason and loads_states:
                with as_hydra_config(now):
                    reason = importlib.import_module(STATE_CHECK).explain_lost_change(before, now)
            if reason:
                raise InputError(
                    f"{text}: hydra/sweeper=pbt cannot change it during training ({reason}); give one value, "
                    "or use hydra/sweeper=asha"
                )

    def best_commands(self, best: Job) -> dict[str, str]:
        run = shlex.quote(f"run={self.folder.run(best.name).shown}")
        return {"evaluate it": as_called(f"python scripts/evaluate.py {run}")}

    def summarize(self) -> str:
        jobs = list(self.folder.ledger.read().values())
        return write_report(self.folder, jobs, self.interval_epochs, self.config.monitor, self.config.mode)


class PopulationSource:
    """Source of jobs that trains a population, one generation after the other.

    Args:
        search: settings of the search.
        folder: folder of the sweep.
        space: search space.
        jobs: jobs on record.
        check: function to call before the first job is recorded [none].
    """

    is_checked = False  # only the corners of the space are checked

    def __init__(
        self,
        search: PbtSweeper,
        folder: SweepFolder,
        space: SearchSpace,
        jobs: Sequence[Job],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._check = check
        self.search = search
        self.folder = folder
        self.space = space
        self.jobs = list(jobs)  # at the index of their numbers
        self._waiting: deque[Job] = deque()
        members = self.population()
        for job in jobs:
            if job.state == "waiting" and job in members:
                self._waiting.append(job)
            elif job.state == "waiting":  # failed, and retry_failed=true, but a copy has replaced it
                job.state = "failed"
                folder.ledger.write(job)
        self._budget = TimeBudget(search.timeout_s)

    def next_job(self) -> Job | None:
        if not self._waiting:
            self._begin_generation()
        if self._budget.is_over or not self._waiting:
            return None
        self._budget.begin()
        return self._waiting.popleft()

    def complete_overrides(self, job: Job) -> list[str]:
        epochs = epochs_of(job, self.search.interval_epochs) + self.search.interval_epochs
        return job.overrides if epochs == self.search.max_epochs else with_pause(job, epochs)

    def finish(self, job: Job) -> None:
        pass

    def population(self) -> list[Job]:
        """Return the present members, each at its place."""
        places: dict[int, int] = {}  # by number of the job
        members: dict[int, Job] = {}
        for job in self.jobs:
            places[job.number] = job.number if job.replaced is None else places[job.replaced]
            members[places[job.number]] = job
        return [members[place] for place in sorted(members)]

    def _begin_generation(self) -> None:
        """Record the jobs of the next generation, unless members still train or none has epochs left."""
        if not self.jobs:
            self._check()
            self._record([], self._draw_members())
            return
        members = self.population()
        paused = [job for job in members if job.state == "paused"]
        if not paused or any(job.state not in FINISHED for job in members):
            return
        (epochs,) = {epochs_of(job, self.search.interval_epochs) for job in paused}
        mode = self.search.config.mode
        states = [
            Member(score(values_of(job)[-1], mode), job.state == "paused")
            if job.state != "failed"
            else Member(score(None, mode), is_paused=False)
            for job in members
        ]
        selection = select_members(states, self.search.quantile_fraction)
        sources = [members[index] for index in selection.sources]
        copies: list[Job] = []
        for place in selection.replaced:
            number = len(self.jobs) + len(copies)
            copies.append(self._copy(number, sources, members[place], epochs, place))
        replaced = {job.replaced for job in copies}
        continued = [job for job in paused if job.number not in replaced]
        for job in continued:
            if not clear_result(self.folder, job):
                raise InputError(f"{self.folder.run(job.name).status_file}: cannot be written; make room")
        self._record(continued, copies)

    def _record(self, continued: Sequence[Job], new: Sequence[Job]) -> None:
        """Record the jobs of a generation together, before any of them starts.

        Raises:
            InputError: the ledger cannot be written; a kill of the sweep would lose its decisions.
        """
        for job in continued:
            job.state = "waiting"
        ledger = self.folder.ledger
        try:
            if ledger.outage:
                raise OSError(ledger.outage)
            ledger.add(*continued, *new)
        except OSError as error:
            raise InputError(
                f"{ledger.file}: the next generation could not be recorded ({reason_of(error)}); make room, "
                f"and continue with resume={self.folder.shown}"
            ) from error
        self.jobs += new
        self._waiting.extend([*continued, *new])

    def _draw_members(self) -> list[Job]:
        """Make the jobs of the first generation; those of a finite space differ."""
        search, points = self.search, self.space.find_points()
        numbers = range(search.population_size)
        if points is None:
            found = [self.space.ask(random_study(search.seed, number)).params for number in numbers]
        else:
            order = np.random.default_rng(search.seed).permutation(len(points))
            found = [points[index] for index in order[: len(numbers)]]
        return [self._make_job(number, values) for number, values in zip(numbers, found, strict=True)]

    def _copy(self, number: int, sources: Sequence[Job], replaced: Job, epochs: int, place: int) -> Job:
        """Make the job of a copy with new values, and its folder.

        Args:
            number: number of the job.
            sources: best members.
            replaced: member that the copy replaces.
            epochs: epochs that the members have trained.
            place: place of the member, by which the random choices differ.
        """
        path = (epochs, place)
        generator = np.random.default_rng((self.search.seed, *path))
        parent = sources[int(generator.integers(len(sources)))]
        values = explore(
            self.space,
            parse_point(parent.varied, self.space.distributions, parent.name),
            self.search.resample_prob,
            generator,
            random_study(self.search.seed, *path),
        )
        job = self._make_job(number, values)
        job.parent, job.start_epoch, job.replaced = parent.number, epochs, replaced.number
        copy_run(self.folder, parent, job)
        return job

    def _make_job(self, number: int, values: Mapping[str, Any]) -> Job:
        most = self.search.population_size * self.search.max_epochs // self.search.interval_epochs
        point: Point = self.space.point(values)
        (job,) = make_jobs(number, number, point, [[]], len(str(most - 1)))
        return job


def copy_run(folder: SweepFolder, parent: Job, job: Job) -> None:
    """Make the folder of a job that continues from the state of a paused one, with its history.

    Raises:
        InputError: the paused job has no undamaged checkpoint.
        CheckpointError: a checkpoint cannot be written.
        OSError: another file cannot be written.
    """
    source, target = folder.run(parent.name), folder.run(job.name)
    if (newest := source.newest_checkpoint().path) is None:
        raise InputError(f"{source.shown}: no undamaged checkpoint to continue from; restore it")
    target.path.mkdir(exist_ok=True)
    copy(newest, target.checkpoints / LAST)
    for file in source.checkpoints.glob("*.ckpt"):
        if file.name not in (LAST, PREVIOUS):
            copy(file, target.checkpoints / file.name)
    if (history := source.path / HISTORY).exists():
        shutil.copyfile(history, target.path / HISTORY)
