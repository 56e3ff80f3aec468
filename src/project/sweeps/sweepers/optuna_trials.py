"""Jobs of an Optuna search: trials that a sampler suggests, and their results."""

from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from project.errors import InputError, NonFiniteError
from project.runs.sweep_jobs import FINISHED, Job
from project.sweeps.job_scheduler import TimeBudget
from project.sweeps.sweepers.grid import make_jobs, repetitions
from project.sweeps.sweepers.search_space import REPEATS, SearchSpace

if TYPE_CHECKING:
    from project.sweeps.sweepers.optuna_search import OptunaSweeper

OWNER = "sweep"
"""Trial attribute: name of the sweep that runs the trial."""
RETRY_OF = "again"
"""Trial attribute: number of the failed trial that the trial repeats."""
MAX_REPEATS = 10
"""Known points that a sampler may suggest in sequence before an untried one replaces its suggestions."""
EXHAUSTED = "exhausted"
"""Study attribute: true once the sampler has suggested every point."""


class TrialSource:
    """Source of the jobs of a search.

    Args:
        search: settings of the search.
        study: study with the sampler.
        space: search space.
        jobs: jobs on record.
    """

    is_checked = False  # only the corners of the space are checked

    def __init__(
        self,
        search: "OptunaSweeper",
        study: optuna.Study,
        space: SearchSpace,
        jobs: Sequence[Job],
    ) -> None:
        self.search = search
        self.study = study
        self.space = space
        self.points = space.find_points()
        self.jobs: dict[int, list[Job]] = {}  # by number of the trial
        self._copies: dict[int, list[int]] = {}  # trials that await the result of the key
        for job in jobs:
            self.jobs.setdefault(job.point, []).append(job)
        self._next_number = 1 + max((job.number for job in jobs), default=-1)
        self._waiting = deque(job for job in jobs if job.state == "waiting")
        self._budget = TimeBudget(search.timeout_s)
        self._is_exhausted = bool(study.user_attrs.get(EXHAUSTED))
        # Exhausted samplers call `study.stop`, which Optuna supports only in its own loop.
        study.stop = self._stop  # type: ignore[method-assign]

    def reconcile(self) -> None:
        """Update the study from the job record after the sweep was killed."""
        trials = self.study.get_trials(deepcopy=False)
        if unknown := [number for number in self.jobs if number >= len(trials)]:
            raise InputError(
                f"{self.search.folder.shown}: the study {self.study.study_name} lacks trial {unknown[0]} of "
                f"this sweep; its storage {self.search.storage_url} was lost or replaced"
            )
        for trial in trials:
            if trial.number in self.jobs:
                if trial.state == TrialState.RUNNING:
                    self._report(trial.number)
                elif any(job.state == "waiting" for job in self.jobs[trial.number]):
                    self._retry(trial)
            elif trial.state == TrialState.RUNNING and (
                self.search.storage is None or trial.user_attrs.get(OWNER) == self.search.owner
            ):
                self.study.tell(
                    trial.number, state=TrialState.FAIL
                )  # the sweep was killed before recording its jobs

    def next_job(self) -> Job | None:
        if not self._waiting:
            if self._budget.is_over or self._is_exhausted or len(self.jobs) >= self.search.n_trials:
                return None
            self._ask()
        self._budget.begin()
        return self._waiting.popleft()

    def complete_overrides(self, job: Job) -> list[str]:
        return [*job.overrides, *self.search.pruning_overrides(job.point)]

    def finish(self, job: Job) -> None:
        self._report(job.point)
        self._tell_copies(job.point)

    def _stop(self) -> None:
        self._is_exhausted = True
        self.study.set_user_attr(EXHAUSTED, True)

    def _retry(self, failed: FrozenTrial) -> None:
        """Move the jobs of a failed trial, which Optuna cannot reopen, to a new trial with equal values."""
        attributes = {OWNER: self.search.owner, RETRY_OF: failed.number}
        self.study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=failed.params,
                distributions=failed.distributions,
                user_attrs=attributes,
            )
        )
        trials = self.study.get_trials(deepcopy=False)
        number = max(trial.number for trial in trials if trial.user_attrs == attributes)
        jobs = self.jobs.pop(failed.number)
        for job in jobs:
            job.point = number
        self.jobs[number] = jobs
        self.search.folder.ledger.write(*jobs)

    def _ask(self) -> None:
        """Ask the sampler for a trial that is not known yet and create its jobs.

        A repeated point would train to the same result again; the study is told that of the earlier trial.
        """
        search = self.search
        trials = self.study.get_trials(deepcopy=False)
        known = {_identity(trials[number].params): number for number in self.jobs}
        for attempt in count():
            trial = self.space.ask(self.study)
            trial.set_user_attr(OWNER, search.owner)
            earlier = known.get(_identity(trial.params))
            if earlier is None or (self.points is None and attempt >= MAX_REPEATS):
                break
            trial.set_user_attr(REPEATS, earlier)
            self._copies.setdefault(earlier, []).append(trial.number)
            self._tell_copies(earlier)
            if self.points is not None and attempt >= MAX_REPEATS:
                untried = next(point for point in self.points if _identity(point) not in known)
                self.study.enqueue_trial(untried, user_attrs={OWNER: search.owner})
        point = self.space.point(trial.params)
        extras = list(repetitions(point, search.config.seed, search.seeds, search.folds))
        digits = len(str(search.n_trials * len(extras) - 1))
        jobs = make_jobs(self._next_number, trial.number, point, extras, digits)
        self._next_number += len(jobs)
        search.folder.ledger.write(*jobs)
        self.jobs[trial.number] = jobs
        self._waiting.extend(jobs)

    def _tell_copies(self, number: int) -> None:
        """Tell the study the result of a finished trial for the trials that repeat it."""
        trial = self.study.get_trials(deepcopy=False)[number]
        if trial.state.is_finished():
            for copy in self._copies.pop(number, ()):
                self.study.tell(
                    copy, trial.values if trial.state == TrialState.COMPLETE else None, trial.state
                )

    def _report(self, number: int) -> None:
        """Report a trial's result to the study once all jobs of the trial have ended."""
        jobs = self.jobs[number]
        if any(job.state not in FINISHED for job in jobs):
            return
        if self.study.get_trials(deepcopy=False)[number].state.is_finished():
            return
        # Diverged trials are reported as pruned: samplers learn from pruned trials, but not from failed ones.
        has_diverged = any((job.error or "").startswith(NonFiniteError.__name__) for job in jobs)
        if has_diverged or any(job.state == "pruned" for job in jobs):
            self.study.tell(number, state=TrialState.PRUNED)
            return
        values = [_mean(jobs, name, self.search.config.monitor) for name in self.search.metrics]
        known = [value for value in values if value is not None and value == value]
        if len(known) < len(values):
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, known)


def _identity(params: Mapping[str, Any]) -> Hashable:
    """Return a value that is equal for trials with equal parameters, apart from rounding."""
    return frozenset(
        (key, f"{value:.12g}" if isinstance(value, float) else value) for key, value in params.items()
    )


def _mean(jobs: Sequence[Job], name: str, monitor: str) -> float | None:
    """Return the mean of a metric over a trial's jobs, None if one of them lacks it."""
    values = []
    for job in jobs:
        value = job.value if name == monitor else job.metrics.get(name, getattr(job, name, None))
        if job.state != "done" or value is None:
            return None
        values.append(float(value))
    return sum(values) / len(values)
