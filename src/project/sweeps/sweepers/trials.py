"""The jobs of a search, and what its study is told of them."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from project.errors import InputError, NonFiniteError
from project.runs.sweep_jobs import FINISHED, Job
from project.sweeps.sweepers.points import Point, jobs_of, repeated
from project.sweeps.sweepers.search_space import overrides_of

if TYPE_CHECKING:
    from project.sweeps.sweepers.search import Search

OWNER = "sweep"
"""Attribute of a trial: the sweep that runs it."""
AGAIN = "again"
"""Attribute of a trial: the failed one whose jobs run again as this one."""
EXHAUSTED = "exhausted"
"""Attribute of a study: its sampler has been everywhere."""


class Trials:
    """The jobs of a search.

    Args:
        search: its settings.
        study: Optuna's.
        constant: overrides of all trials.
        space: distributions by key.
        jobs: that are on record already.
    """

    checked = False  # the probes were, but not what lies between them

    def __init__(
        self,
        search: "Search",
        study: optuna.Study,
        constant: Sequence[str],
        space: Mapping[str, BaseDistribution],
        jobs: Sequence[Job],
    ) -> None:
        self.search = search
        self.study = study
        self.constant = list(constant)
        self.space = dict(space)
        self.trials: dict[int, list[Job]] = {}  # jobs by trial
        for job in jobs:
            self.trials.setdefault(job.point, []).append(job)
        self._next_number = 1 + max((job.number for job in jobs), default=-1)
        self.waiting = deque(job for job in jobs if job.state == "waiting")
        self.began = time.monotonic()
        self.exhausted = bool(study.user_attrs.get(EXHAUSTED))
        # Samplers that have been everywhere say so by a method that Optuna has for its own loop alone.
        study.stop = self._stop  # type: ignore[method-assign]

    def settle(self) -> None:
        """Bring the study in line with the record of jobs, after an end at any moment."""
        trials = self.study.get_trials(deepcopy=False)
        if unknown := [number for number in self.trials if number >= len(trials)]:
            raise InputError(
                f"{self.search.folder.shown}: the study {self.study.study_name} lacks this sweep's trial "
                f"{unknown[0]}; its storage {self.search.storage_url} was lost or is another one"
            )
        for trial in trials:
            if trial.number in self.trials:
                if trial.state == TrialState.RUNNING:
                    self._tell(trial.number)
                elif any(job.state == "waiting" for job in self.trials[trial.number]):
                    self._begin_again(trial)
            elif trial.state == TrialState.RUNNING and self._is_ours(trial):
                self.study.tell(trial.number, state=TrialState.FAIL)  # no job was made of it

    def overrides(self, job: Job) -> list[str]:
        """See `Source`."""
        return [*job.overrides, *self.search.pruning(job.point)]

    def next(self) -> Job | None:
        """See `Source`."""
        if self.waiting:
            return self.waiting.popleft()
        limit = self.search.timeout_s
        late = limit is not None and time.monotonic() - self.began > limit
        if late or self.exhausted or len(self.trials) >= self.search.n_trials:
            return None
        self._ask()
        return self.waiting.popleft()

    def ended(self, job: Job) -> None:
        """See `Source`."""
        self._tell(job.point)

    def _stop(self) -> None:
        self.exhausted = True
        self.study.set_user_attr(EXHAUSTED, True)

    def _is_ours(self, trial: FrozenTrial) -> bool:
        return self.search.storage is None or trial.user_attrs.get(OWNER) == self.search.owner

    def _begin_again(self, failed: FrozenTrial) -> None:
        """Give the jobs of a trial that has failed for good in the study a new trial of the same values."""
        attributes = {OWNER: self.search.owner, AGAIN: failed.number}
        self.study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=failed.params,
                distributions=failed.distributions,
                user_attrs=attributes,
            )
        )
        number = max(
            trial.number for trial in self.study.get_trials(deepcopy=False) if trial.user_attrs == attributes
        )
        jobs = self.trials.pop(failed.number)
        for job in jobs:
            job.point = number
        self.trials[number] = jobs
        self.search.folder.ledger.write(*jobs)

    def _ask(self) -> None:
        trial = self.study.ask(self.space)
        trial.set_user_attr(OWNER, self.search.owner)
        search = self.search
        point = Point(self.constant, overrides_of(trial.params))
        extras = list(repeated(point, search.config.seed, search.seeds, search.folds))
        first = self._next_number
        digits = len(str(search.n_trials * len(extras) - 1))
        jobs = jobs_of(first, trial.number, point, extras, digits)
        self._next_number += len(jobs)
        search.folder.ledger.write(*jobs)
        self.trials[trial.number] = jobs
        self.waiting.extend(jobs)

    def _tell(self, number: int) -> None:
        """Tell the study a trial's result, if all of its jobs have ended and it does not know it."""
        jobs = self.trials[number]
        if any(job.state not in FINISHED for job in jobs):
            return
        if _find(self.study, number).state.is_finished():
            return
        # Diverged values are a lesson to the sampler, as pruned ones are; it looks at no failed trial.
        diverged = any((job.error or "").startswith(NonFiniteError.__name__) for job in jobs)
        if diverged or any(job.state == "pruned" for job in jobs):
            self.study.tell(number, state=TrialState.PRUNED)
            return
        values = [_mean(jobs, name, self.search.config.monitor) for name in self.search.names]
        known = [value for value in values if value is not None and value == value]
        if len(known) < len(values):
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, known)


def _find(study: optuna.Study, number: int) -> FrozenTrial:
    return study.get_trials(deepcopy=False)[number]


def _mean(jobs: Sequence[Job], name: str, monitor: str) -> float | None:
    """Mean over a trial's jobs, None if one of them has no value."""
    values = []
    for job in jobs:
        if job.state != "done":
            return None
        value = job.value if name == monitor else job.metrics.get(name, getattr(job, name, None))
        if value is None:
            return None
        values.append(float(value))
    return sum(values) / len(values)
