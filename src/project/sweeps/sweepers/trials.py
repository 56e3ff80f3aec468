"""Trials of a search: a source of jobs that reports their results to an Optuna study."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from project.errors import InputError, NonFiniteError
from project.runs.sweep_jobs import FINISHED, Job
from project.sweeps.sweepers.grid import Point, make_jobs, repetitions
from project.sweeps.sweepers.search_space import trial_overrides

if TYPE_CHECKING:
    from project.sweeps.sweepers.search import OptunaSweeper

OWNER = "sweep"
"""Attribute of a trial: name of the sweep that runs it."""
RETRY_OF = "again"
"""Attribute of a trial: number of the failed trial whose jobs it runs again."""
EXHAUSTED = "exhausted"
"""Attribute of a study: true once its sampler has suggested every point."""


class TrialSource:
    """Source of a search's jobs."""

    is_checked = False  # only the corners of the space are

    def __init__(
        self,
        search: "OptunaSweeper",
        study: optuna.Study,
        constant: Sequence[str],
        space: Mapping[str, BaseDistribution],
        jobs: Sequence[Job],
    ) -> None:
        self.search = search
        self.study = study
        self.constant = list(constant)
        self.space = dict(space)
        self.jobs: dict[int, list[Job]] = {}  # by number of the trial
        for job in jobs:
            self.jobs.setdefault(job.point, []).append(job)
        self._next_number = 1 + max((job.number for job in jobs), default=-1)
        self._waiting = deque(job for job in jobs if job.state == "waiting")
        self._start = time.monotonic()
        self._is_exhausted = bool(study.user_attrs.get(EXHAUSTED))
        # Samplers that have suggested every point call this method, which Optuna has for its own loop alone.
        study.stop = self._stop  # type: ignore[method-assign]

    def settle(self) -> None:
        """Bring the study up to date with the record of jobs, after an end at any moment."""
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
                self.study.tell(trial.number, state=TrialState.FAIL)  # killed before its jobs were recorded

    def next_job(self) -> Job | None:
        if not self._waiting:
            limit_s = self.search.timeout_s
            is_late = limit_s is not None and time.monotonic() - self._start > limit_s
            if is_late or self._is_exhausted or len(self.jobs) >= self.search.n_trials:
                return None
            self._ask()
        return self._waiting.popleft()

    def complete_overrides(self, job: Job) -> list[str]:
        return [*job.overrides, *self.search.pruning_overrides(job.point)]

    def finish(self, job: Job) -> None:
        self._report(job.point)

    def _stop(self) -> None:
        self._is_exhausted = True
        self.study.set_user_attr(EXHAUSTED, True)

    def _retry(self, failed: FrozenTrial) -> None:
        """Move the jobs of a failed trial, which a study never changes, to a new trial of the same values."""
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
        """Ask the sampler for a trial, and make its jobs."""
        search = self.search
        trial = self.study.ask(self.space)
        trial.set_user_attr(OWNER, search.owner)
        point = Point(self.constant, trial_overrides(trial.params))
        extras = list(repetitions(point, search.config.seed, search.seeds, search.folds))
        digits = len(str(search.n_trials * len(extras) - 1))
        jobs = make_jobs(self._next_number, trial.number, point, extras, digits)
        self._next_number += len(jobs)
        search.folder.ledger.write(*jobs)
        self.jobs[trial.number] = jobs
        self._waiting.extend(jobs)

    def _report(self, number: int) -> None:
        """Report the result of a trial to the study once all of its jobs ended."""
        jobs = self.jobs[number]
        if any(job.state not in FINISHED for job in jobs):
            return
        if self.study.get_trials(deepcopy=False)[number].state.is_finished():
            return
        # The sampler learns from pruned trials, so also from diverged ones, but never from failed ones.
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


def _mean(jobs: Sequence[Job], name: str, monitor: str) -> float | None:
    """Return the mean of a metric over a trial's jobs, None if one of them lacks it."""
    values = []
    for job in jobs:
        value = job.value if name == monitor else job.metrics.get(name, getattr(job, name, None))
        if job.state != "done" or value is None:
            return None
        values.append(float(value))
    return sum(values) / len(values)
