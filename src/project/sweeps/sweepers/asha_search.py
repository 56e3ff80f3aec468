"""The ASHA sweeper, which continues the best trials of a random search from their checkpoints.

A job's rung is the number of its pauses. `successive_halving` has the algorithm.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from omegaconf import DictConfig

from project.errors import InputError
from project.runs.optuna_studies import silence_optuna
from project.runs.sweep_folder import SweepFolder
from project.runs.sweep_jobs import Job
from project.runtime.bounds import Range
from project.runtime.console import table
from project.runtime.text import plural
from project.sweeps.job_scheduler import TimeBudget
from project.sweeps.job_table import column_titles, warn_if_unwritable, write_rows
from project.sweeps.sweepers.base import RecordedSweeper
from project.sweeps.sweepers.grid import make_jobs
from project.sweeps.sweepers.pausing import (
    cell_text,
    clear_result,
    refuse_repetitions,
    refuse_unmeasured,
    score,
    values_of,
    with_pause,
)
from project.sweeps.sweepers.search_space import SearchSpace, random_study
from project.sweeps.sweepers.successive_halving import Trial, find_promotion, rung_epochs

MAX_ROWS = 20


class AshaSweeper(RecordedSweeper):
    """Random search with asynchronous successive halving.

    Args:
        n_trials: number of trials.
        timeout_s: time since the first job after which no trial starts or continues [s] (None: no limit).
        min_epochs: epochs after which trials are compared for the first time.
        reduction_factor: ratio of the epochs, and of the numbers of trials, at successive rungs.
        seed: seed of the random search (None: different trials each time).
        params: additional parameters of the search space, in Hydra's grammar.
        only_if: conditions under which parameters apply (see `Conditions`).
        seeds: must be 1.
        folds: must be None.
        batch: simultaneous trials with third-party launchers.
        changed_code: resume even if the code has changed since the sweep began.
    """

    def __init__(
        self,
        n_trials: Annotated[int, Range(1)] = 20,
        timeout_s: Annotated[float, Range(above=0)] | None = None,
        min_epochs: Annotated[int, Range(1)] = 1,
        reduction_factor: Annotated[int, Range(2)] = 3,
        seed: Annotated[int, Range(0)] | None = None,
        params: Mapping[str, Any] | None = None,
        only_if: Mapping[str, str] | None = None,
        seeds: Annotated[int, Range(1)] = 1,
        folds: Annotated[int, Range(2)] | None = None,
        batch: Annotated[int, Range(1)] = 1,
        changed_code: bool = False,
    ) -> None:
        super().__init__(seeds, folds, changed_code)
        refuse_repetitions("asha", seeds, folds)
        silence_optuna()
        self.n_trials = n_trials
        self.timeout_s = timeout_s
        self.min_epochs = min_epochs
        self.reduction_factor = reduction_factor
        self.seed = seed
        self.params = dict(params or {})
        self.only_if = dict(only_if or {})
        self.batch = batch
        self.rungs: list[int] = []  # epochs, set by `refuse_config`

    def run_jobs(self, overrides: Sequence[str], jobs: list[Job]) -> int:
        space = SearchSpace.parse(overrides, self.loader, self.params, self.only_if, "asha")
        targets = self.check_jobs(space.corner_jobs())
        source = TrialSource(self, self.folder, space, jobs)
        return self.run_source(source, jobs, max(self.n_trials, len(jobs)), targets)

    def refuse_config(self, config: DictConfig) -> None:
        max_epochs = config.trainer.max_epochs
        rungs = rung_epochs(self.min_epochs, max_epochs, self.reduction_factor)
        if self.rungs not in ([], rungs):
            raise InputError(
                f"trainer.max_epochs={max_epochs}: hydra/sweeper=asha compares trials after equal numbers of "
                f"epochs (expected {self.rungs[-1]}, as for other trials); give one value"
            )
        if len(rungs) == 1:
            raise InputError(
                f"trainer.max_epochs={max_epochs}: hydra/sweeper=asha would pause no trial (expected at "
                f"least min_epochs * reduction_factor = {self.min_epochs * self.reduction_factor}); raise "
                "it, or lower hydra.sweeper.min_epochs"
            )
        self.rungs = rungs
        refuse_unmeasured(config, "asha", rungs[:-1])
        if self.n_trials < (needed := self.reduction_factor ** (len(rungs) - 1)):
            raise InputError(
                f"hydra.sweeper.n_trials={self.n_trials}: no trial would reach "
                f"trainer.max_epochs={max_epochs} (expected at least {needed} trials); raise it, or raise "
                "hydra.sweeper.min_epochs"
            )

    def summarize(self) -> str:
        jobs = list(self.folder.ledger.read().values())
        return write_report(self.folder, jobs, self.rungs, self.config.monitor, self.config.mode)


class TrialSource:
    """Source of jobs that starts or continues trials.

    Args:
        search: settings of the search, with the epochs of its rungs.
        folder: folder of the sweep.
        space: search space.
        jobs: jobs on record.
    """

    is_checked = False  # only the corners of the space are checked

    def __init__(
        self,
        search: AshaSweeper,
        folder: SweepFolder,
        space: SearchSpace,
        jobs: Sequence[Job],
    ) -> None:
        self.search = search
        self.folder = folder
        self.space = space
        self.jobs = list(jobs)  # at the index of their numbers
        self._unfinished = deque(job for job in jobs if job.state == "waiting")
        self._budget = TimeBudget(search.timeout_s)

    def next_job(self) -> Job | None:
        if self._budget.is_over:
            return None
        self._budget.begin()
        if self._unfinished:
            return self._unfinished.popleft()
        return self._promote() or (self._draw() if len(self.jobs) < self.search.n_trials else None)

    def complete_overrides(self, job: Job) -> list[str]:
        epochs = self.search.rungs[len(job.pause_values)]
        if epochs == self.search.rungs[-1]:
            return job.overrides
        return with_pause(job, epochs)

    def finish(self, job: Job) -> None:
        pass

    def _promote(self) -> Job | None:
        """Return the job of the next promoted trial; None if no trial can be promoted."""
        search = self.search
        while True:
            trials = [_trial(job, search.config.mode) for job in self.jobs]
            number = find_promotion(trials, len(search.rungs), search.reduction_factor)
            if number is None:
                return None
            job = self.jobs[number]
            if job.state == "done":  # stopped early: continuing would not train
                job.pause_values = [*job.pause_values, job.value]
                self.folder.ledger.write(job)
                continue
            if clear_result(self.folder, job):
                job.state = "waiting"
                self.folder.ledger.write(job)
            return job

    def _draw(self) -> Job:
        """Make the job of a new trial, whose values depend only on the seed and on the trial's number."""
        number = len(self.jobs)
        point = self.space.point(self.space.ask(random_study(self.search.seed, number)).params)
        (job,) = make_jobs(number, number, point, [[]], len(str(self.search.n_trials - 1)))
        self.jobs.append(job)
        self.folder.ledger.write(job)
        return job


def _trial(job: Job, mode: str) -> Trial:
    scores = [score(value, mode) for value in values_of(job)]
    return Trial(
        [*scores, -math.inf] if job.state == "failed" else scores,
        is_training=job.state in ("waiting", "running", "interrupted"),
    )


def write_report(
    folder: SweepFolder, jobs: Sequence[Job], rungs: Sequence[int], monitor: str, mode: str
) -> str:
    """Write `trials.csv`, with the value of each trial at each rung.

    Returns:
        Text with the number of trials at each rung, and the trials that came furthest.
    """
    titles = column_titles(jobs)
    heads = [*titles.values(), *(plural(epochs, "epoch") for epochs in rungs)]

    def place(job: Job) -> tuple[float, ...]:
        values = values_of(job)
        return -len(values), -score(values[-1], mode) if values else 0.0, job.number

    def row(job: Job) -> list[Any]:
        values = values_of(job)
        shown = [*values, *[None] * (len(rungs) - len(values))]
        return [job.number, job.state, *(job.settings.get(key, "") for key in titles), *shown]

    rows = [row(job) for job in sorted(jobs, key=place)]
    with warn_if_unwritable(folder.shown):
        write_rows(folder.path / "trials.csv", ["trial", "state", *heads], rows)
    reached = [sum(len(values_of(job)) > rung for job in jobs) for rung in range(len(rungs))]
    shown = [[cell_text(cell) for cell in each] for each in rows[:MAX_ROWS]]
    lines = [f"{monitor} of the trials at each rung:", table(["trial", "state", *heads], shown)]
    if more := len(rows) - len(shown):
        lines.append(f"… and {plural(more, 'trial')} more, in {folder.shown}/trials.csv")
    counts = [
        f"{plural(number, 'trial')} after {plural(epochs, 'epoch')}"
        for number, epochs in zip(reached, rungs, strict=True)
    ]
    return "\n".join([*lines, f"rungs: {', '.join(counts)}"])
