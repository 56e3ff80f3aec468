"""Search by Optuna: trials are asked for one by one, whenever devices are free."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from project.errors import InputError
from project.nearest import did_you_mean
from project.studies import JOURNAL, make_pruner, make_sampler, open_storage, silence
from project.sweeps.folder import SweepFolder
from project.sweeps.jobs import FINISHED, Job, quoted
from project.sweeps.launching import StreamingLauncher
from project.sweeps.points import Point, jobs_of, refuse_repeats, repeated
from project.sweeps.search_report import report
from project.sweeps.space import corners, overrides_of, space_of
from project.sweeps.sweeping import RecordedSweeper

OWNER = "sweep"
"""Attribute of a trial: the folder of the sweep that runs it."""
DIRECTIONS = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}


class Search(RecordedSweeper):
    """Trials suggested by an Optuna sampler, ended early by a pruner.

    Args:
        n_trials: of this sweep; other sweeps that share the study have their own.
        timeout_s: no trial is started later than so many seconds after the start; null: no limit.
        sampler: name, see `project.studies.SAMPLERS`.
        sampler_options: of its constructor.
        pruner: name, see `project.studies.PRUNERS`.
        pruner_options: of its constructor.
        seed: of the sampler.
        objectives: metrics and `max` or `min`, null for the run's own monitor; several give a Pareto front.
        storage: address, null for a journal file in the sweep's folder.
        study: its name, needed with a storage.
        params: more of the space, key by key, in Hydra's grammar.
        seeds: runs of each trial, whose mean is its value.
        folds: cross-validation, likewise.
        batch: trials at a time, on launchers that are not ours.
        changed_code: go on although the code is not what the sweep began with.
    """

    def __init__(
        self,
        n_trials: int = 20,
        timeout_s: float | None = None,
        sampler: str = "tpe",
        sampler_options: Mapping[str, Any] | None = None,
        pruner: str = "none",
        pruner_options: Mapping[str, Any] | None = None,
        seed: int | None = None,
        objectives: Mapping[str, str] | None = None,
        storage: str | None = None,
        study: str | None = None,
        params: Mapping[str, Any] | None = None,
        seeds: int = 1,
        folds: int | None = None,
        batch: int = 1,
        changed_code: bool = False,
    ) -> None:
        super().__init__(changed_code)
        silence()
        self.n_trials = n_trials
        self.timeout_s = timeout_s
        self.sampler, self.sampler_options = sampler, dict(sampler_options or {})
        self.pruner, self.pruner_options = pruner, dict(pruner_options or {})
        self.seed = seed
        self.objectives = dict(objectives or {})
        self.storage, self.study_name = storage, study
        self.params = dict(params or {})
        self.seeds, self.folds = seeds, folds
        self.batch = batch
        self._refuse()

    def run_jobs(self, overrides: Sequence[str], jobs: list[Job]) -> int:
        """See `RecordedSweeper`."""
        given = {text.partition("=")[0] for text in overrides}
        params = [f"{key}={value}" for key, value in self.params.items() if key not in given]
        constant, space = space_of([*params, *overrides], self.loader)
        targets = self._probe(constant, space)
        self.study = self._study()
        source = Trials(self, self.study, constant, space, jobs)
        source.settle()
        expected = self.n_trials * self.seeds * (self.folds or 1)
        if isinstance(self.launcher, StreamingLauncher):
            return self.stream(source, jobs, expected, targets)
        return self._in_batches(source)

    def summary(self, folder: SweepFolder) -> str:
        """See `RecordedSweeper`."""
        return report(folder, self.study, self.names)

    @property
    def names(self) -> list[str]:
        """Metrics that are searched by."""
        return list(self.objectives) or [self.config.monitor]

    @property
    def storage_url(self) -> str:
        """Where the study is kept."""
        return self.storage or f"{JOURNAL}{self.folder.path.absolute() / 'study.journal'}"

    def pruning(self, trial: int) -> list[str]:
        """The override that gives a job its pruning."""
        if self.pruner == "none":
            return []
        options = ",".join(f"{key}:{value}" for key, value in self.pruner_options.items())
        fields = {
            "_target_": "project.callbacks.pruning.Pruning",
            "storage": quoted(self.storage_url),
            "study": quoted(self.study_name or self.folder.path.name),
            "trial": trial,
            "monitor": "${monitor}",
            "pruner": self.pruner,
            "pruner_options": f"{{{options}}}",
        }
        return ["+callbacks.pruning={" + ",".join(f"{key}:{value}" for key, value in fields.items()) + "}"]

    def _refuse(self) -> None:
        make_sampler(self.sampler, self.sampler_options, self.seed)
        make_pruner(self.pruner, self.pruner_options)
        refuse_repeats(self.seeds, self.folds)
        if self.n_trials < 1:
            raise InputError(f"hydra.sweeper.n_trials={self.n_trials}: must be at least 1")
        for name, direction in self.objectives.items():
            if direction not in DIRECTIONS:
                hint = did_you_mean(direction, ("max", "min"))
                raise InputError(f"hydra.sweeper.objectives.{name}={direction}: {hint}")
        if self.storage is not None and self.study_name is None:
            raise InputError(
                f"hydra.sweeper.storage={self.storage}: a storage holds many studies; name one with "
                "hydra.sweeper.study=NAME"
            )
        several = "several objectives" if len(self.objectives) > 1 else ""
        several = several or ("seeds or folds" if self.seeds > 1 or self.folds is not None else "")
        if self.pruner != "none" and several:
            raise InputError(
                f"hydra.sweeper.pruner={self.pruner}: cannot prune trials with {several}; set pruner=none"
            )

    def _probe(self, constant: Sequence[str], space: Mapping[str, BaseDistribution]) -> list[str]:
        """Check points from all over the space before the first trial."""
        probes = [
            Job(number, [*constant, *overrides_of(values)], [], "probe")
            for number, values in enumerate(corners(space))
        ]
        return self.checked(probes)

    def _study(self) -> optuna.Study:
        directions = [DIRECTIONS[mode] for mode in self.objectives.values()] or [DIRECTIONS[self.config.mode]]
        name = self.study_name or self.folder.path.name
        storage = open_storage(self.storage_url)
        study = optuna.create_study(
            storage=storage, study_name=name, directions=directions, load_if_exists=True
        )
        if study.directions != directions:
            raise InputError(
                f"hydra.sweeper.study={name}: exists with other directions; choose another name for "
                f"{', '.join(self.names)}"
            )
        # A seed alone would make a resumed search suggest its first points again.
        seed = None if self.seed is None else self.seed + len(study.get_trials(deepcopy=False))
        study.sampler = make_sampler(self.sampler, self.sampler_options, seed)
        study.pruner = make_pruner(self.pruner, self.pruner_options)
        return study

    def _in_batches(self, source: "Trials") -> int:
        """Ask for some trials, have them run, tell their results, and again."""
        while batch := [job for _ in range(self.batch) if (job := source.next()) is not None]:
            self._run_elsewhere(batch)
            for job in batch:
                source.ended(job)
        return 0


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
        search: Search,
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
            self.trials.setdefault(_trial_of(job), []).append(job)
        self.waiting = deque(job for job in jobs if job.state == "waiting")
        self.began = time.monotonic()
        self.exhausted = False
        # Samplers that have been everywhere say so by a method that Optuna has for its own loop alone.
        study.stop = self._stop  # type: ignore[method-assign]

    def settle(self) -> None:
        """Bring the study in line with the record of jobs, after an end at any moment."""
        owner = str(self.search.folder.path.absolute())
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number in self.trials:
                self._tell(trial.number)
            elif self.search.storage is None or trial.user_attrs.get(OWNER) == owner:
                self.study.tell(trial.number, state=TrialState.FAIL)  # no job was made of it

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
        self._tell(_trial_of(job))

    def _stop(self) -> None:
        self.exhausted = True

    def _ask(self) -> None:
        trial = self.study.ask(self.space)
        trial.set_user_attr(OWNER, str(self.search.folder.path.absolute()))
        search = self.search
        point = Point(self.constant, overrides_of(trial.params))
        extras = list(repeated(point, search.config.seed, search.seeds, search.folds))
        first = sum(map(len, self.trials.values()))
        digits = len(str(search.n_trials * len(extras) - 1))
        jobs = jobs_of(first, trial.number, point, extras, digits)
        for job in jobs:
            job.overrides += search.pruning(trial.number)
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
        if any(job.state == "pruned" for job in jobs):
            self.study.tell(number, state=TrialState.PRUNED)
            return
        values = [_mean(jobs, name, self.search.config.monitor) for name in self.search.names]
        known = [value for value in values if value is not None and value == value]
        if len(known) < len(values):
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, known)


def _trial_of(job: Job) -> int:
    return job.point


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
