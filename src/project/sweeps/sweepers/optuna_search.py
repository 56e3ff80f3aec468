"""The Optuna sweeper, which asks a sampler for a new trial whenever devices are free."""

import json
import platform
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    check_distribution_compatibility,
)
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from project.config.metrics import metrics_of
from project.errors import InputError
from project.runs.optuna_studies import (
    JOURNAL,
    absolute_url,
    make_pruner,
    make_sampler,
    open_storage,
    refuse_unwritable_storage,
    silence_optuna,
)
from project.runs.sweep_jobs import FINISHED, Job, drop_torn_line, to_override_value
from project.runtime.atomic_files import replace_text
from project.runtime.bounds import Range
from project.runtime.process import command_state
from project.runtime.secrets import is_redacted, redact
from project.runtime.text import did_you_mean, plural
from project.sweeps.sweepers.base import RecordedSweeper
from project.sweeps.sweepers.grid import read_points
from project.sweeps.sweepers.optuna_trials import OWNER, TrialSource
from project.sweeps.sweepers.search_report import write_report
from project.sweeps.sweepers.search_space import SearchSpace, parse_point

EARLIER = "earlier"
"""Trial attribute: sweep and number of the trial of an earlier search that the trial copies."""
OWN_JOURNAL = "study.journal"
"""File in the sweep's folder with its study, unless `storage` is set."""
DIRECTIONS = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}


class OptunaSweeper(RecordedSweeper):
    """Search with an Optuna sampler and, optionally, a pruner that ends trials early.

    Args:
        n_trials: number of trials of this sweep, not counting other sweeps that share the study.
        timeout_s: time since the first job after which no trial starts [s] (None: no limit).
        sampler: name in `project.runs.optuna_studies.SAMPLERS`.
        sampler_options: arguments of the sampler's constructor.
        pruner: name in `project.runs.optuna_studies.PRUNERS`.
        pruner_options: arguments of the pruner's constructor.
        seed: seed of the sampler.
        objectives: metrics, each with `max` or `min` (None: `monitor`); several give a Pareto front.
        storage: URL of the study's storage (None: a journal file in the sweep's folder).
        study: name of the study, required with `storage`.
        params: additional parameters of the search space, in Hydra's grammar.
        only_if: conditions under which parameters apply (see `Conditions`).
        file: text file with the overrides of one trial per line, which are tried first.
        warm_start: folder of an earlier search, whose finished trials the sampler learns from.
        seeds: runs per trial, whose mean is the trial's value.
        folds: cross-validation folds per trial (None: no cross-validation).
        batch: simultaneous trials with third-party launchers.
        changed_code: resume even if the code has changed since the sweep began.
    """

    def __init__(
        self,
        n_trials: Annotated[int, Range(1)] = 20,
        timeout_s: Annotated[float, Range(above=0)] | None = None,
        sampler: str = "tpe",
        sampler_options: Mapping[str, Any] | None = None,
        pruner: str = "none",
        pruner_options: Mapping[str, Any] | None = None,
        seed: Annotated[int, Range(0)] | None = None,
        objectives: Mapping[str, str] | None = None,
        storage: str | None = None,
        study: str | None = None,
        params: Mapping[str, Any] | None = None,
        only_if: Mapping[str, str] | None = None,
        file: str | None = None,
        warm_start: str | None = None,
        seeds: Annotated[int, Range(1)] = 1,
        folds: Annotated[int, Range(2)] | None = None,
        batch: Annotated[int, Range(1)] = 1,
        changed_code: bool = False,
    ) -> None:
        super().__init__(seeds, folds, changed_code)
        silence_optuna()
        self.n_trials = n_trials
        self.timeout_s = timeout_s
        self.sampler, self.sampler_options = sampler, dict(sampler_options or {})
        self.pruner, self.pruner_options = pruner, dict(pruner_options or {})
        self.seed = seed
        self.objectives = dict(objectives or {})
        self.storage, self.study_name = storage, study
        self.params = dict(params or {})
        self.only_if = dict(only_if or {})
        self.file, self.warm_start = file, warm_start
        self.batch = batch
        self.identity: dict[str, Any] = {}
        self._refuse_settings()

    def run_jobs(self, overrides: Sequence[str], jobs: list[Job]) -> int:
        space = SearchSpace.parse(overrides, self.loader, self.params, self.only_if)
        self._refuse_objectives()
        known = {job.point for job in jobs}
        done = len(known - {job.point for job in jobs if job.state not in FINISHED})
        continued = command_state.resumed_sweep
        if continued is not None and continued.kept and self.n_trials < done:
            raise InputError(
                f"hydra.sweeper.n_trials={self.n_trials}: {done} trials of {self.folder.shown} have ended; "
                "give more, or leave this out"
            )
        targets = self.check_jobs(space.corner_jobs())
        self._load_identity()
        self.study = self._open_study(space.distributions)
        if self.warm_start is not None and self._is_requested("warm_start", jobs):
            self._add_earlier_trials(self.warm_start, space.distributions)
        if self.file is not None and self._is_requested("file", jobs):
            self._enqueue_trials(self.file, space.distributions)
        self.study.sampler = self._make_sampler()
        self.n_trials = max(self.n_trials, len(known) + self._count_enqueued())
        source = TrialSource(self, self.study, space, jobs)
        source.reconcile()
        self.limit_trials(source)
        return self.run_source(source, jobs, self.n_trials * self.seeds * (self.folds or 1), targets)

    def limit_trials(self, source: TrialSource) -> None:
        """Limit the number of trials to the number of points of a finite space."""
        if source.points is None or self.n_trials <= (most := max(len(source.points), len(source.jobs))):
            return
        print(f"the space has {plural(len(source.points), 'point')}: the search ends when all are tried")
        self.n_trials = most

    def refuse_extension(self, jobs: Sequence[Job]) -> None:
        allowed = ("hydra.sweeper.file=", "hydra.sweeper.warm_start=")
        if wrong := [text for text in self.extension if not text.startswith(allowed)]:
            raise InputError(
                f"{wrong[0]}: {self.folder.shown} is a search, which keeps its space; raise "
                "hydra.sweeper.n_trials, or give points to try with hydra.sweeper.file=FILE"
            )

    def summarize(self) -> str:
        return write_report(self.folder, self.study, self.metrics)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics to optimize."""
        return list(self.objectives) or [self.config.monitor]

    @property
    def owner(self) -> str:
        """Name of this sweep in the study, unchanged when the folder is moved."""
        return self.identity["owner"]

    @property
    def storage_url(self) -> str:
        """URL of the study's storage."""
        return self.identity["storage"] or f"{JOURNAL}{self._own_journal.absolute()}"

    def pruning_overrides(self, trial: int) -> list[str]:
        """Return the overrides that add the pruning callback to a job."""
        if self.pruner == "none":
            return []
        fields = {
            "_target_": "project.callbacks.trial_pruning.TrialPruning",
            "storage": self.storage_url,
            "study": self.identity["study"],
            "trial": trial,
            "pruner": self.pruner,
            "pruner_options": self.pruner_options,
        }
        return [f"+callbacks.pruning={to_override_value(fields)}", "+callbacks.pruning.monitor=${monitor}"]

    @property
    def _own_journal(self) -> Path:
        return self.folder.path / OWN_JOURNAL

    def _load_identity(self) -> None:
        """Read or write the study's name and storage, which stay the same for all processes of the sweep."""
        file = self.folder.path / "study.json"
        storage = self.storage and absolute_url(self.storage)
        if file.exists():
            self.identity = json.loads(file.read_text())
            if is_redacted(self.identity["storage"]):  # the URL contains a password
                self.identity["storage"] = storage
            return
        folder = self.folder.path.absolute()
        owner = f"{platform.node()}:{folder}"
        self.identity = {
            "study": self.study_name or folder.name,
            "storage": storage,
            "owner": owner,
            "metrics": self.metrics,
        }
        replace_text(file, json.dumps(redact(self.identity), indent=2) + "\n")

    def _refuse_settings(self) -> None:
        make_sampler(self.sampler, self.sampler_options, self.seed)
        make_pruner(self.pruner, self.pruner_options)
        for name, direction in self.objectives.items():
            if direction not in DIRECTIONS:
                hint = did_you_mean(direction, DIRECTIONS)
                raise InputError(f"hydra.sweeper.objectives.{name}={direction}: {hint}")
        if self.storage is not None:
            if self.study_name is None:
                raise InputError(
                    f"hydra.sweeper.storage={self.storage}: a storage can hold many studies; name one with "
                    "hydra.sweeper.study=NAME"
                )
            refuse_unwritable_storage(self.storage)
        several = "several objectives" if len(self.objectives) > 1 else ""
        several = several or ("seeds or folds" if self.seeds > 1 or self.folds is not None else "")
        if self.pruner != "none" and several:
            raise InputError(
                f"hydra.sweeper.pruner={self.pruner}: cannot prune trials with {several}; set pruner=none"
            )

    def _refuse_objectives(self) -> None:
        logged = metrics_of(self.config)
        if not logged:  # the task does not declare its metrics
            return
        tested = [f"test/{name.removeprefix('val/')}" for name in logged if name.startswith("val/")]
        known = [*logged, *tested, "duration_s", self.config.monitor]
        for name in self.objectives:
            if name not in known and not any(name.startswith(f"{one}_") for one in known):
                raise InputError(f"hydra.sweeper.objectives.{name}: {did_you_mean(name, known)}")

    def _open_study(self, space: Mapping[str, BaseDistribution]) -> optuna.Study:
        directions = [DIRECTIONS[mode] for mode in self.objectives.values()] or [DIRECTIONS[self.config.mode]]
        name = self.identity["study"]
        if self.identity["storage"] is None:
            drop_torn_line(self._own_journal)
        study = optuna.create_study(
            storage=open_storage(self.storage_url),
            study_name=name,
            directions=directions,
            load_if_exists=True,
        )
        if study.directions != directions:
            raise InputError(
                f"hydra.sweeper.study={name}: exists with other directions; choose another name for "
                f"{', '.join(self.metrics)}"
            )
        _refuse_changed_categories(study, space)
        study.pruner = make_pruner(self.pruner, self.pruner_options)
        return study

    def _make_sampler(self) -> BaseSampler:
        # A seed alone would make a resumed search, or a second machine, suggest the first points again.
        own = zlib.crc32(self.owner.encode()) if self.identity["storage"] else 0
        known = len(self.study.get_trials(deepcopy=False))
        seed = None if self.seed is None else (self.seed + known + own) % 2**32
        return make_sampler(self.sampler, self.sampler_options, seed)

    def _is_requested(self, key: str, jobs: Sequence[Job]) -> bool:
        """Return True if this command, not one that is resumed, sets a key of the sweeper."""
        return not jobs or any(text.startswith(f"hydra.sweeper.{key}=") for text in self.extension)

    def _count_enqueued(self) -> int:
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return sum(trial.user_attrs.get(OWNER) == self.owner for trial in waiting)

    def _enqueue_trials(self, file: str, space: Mapping[str, BaseDistribution]) -> None:
        """Enqueue the points of a file, without those that were tried or enqueued already.

        Raises:
            InputError: a point is outside of the search space, or the file cannot be read.
        """
        points = [
            parse_point([*point.constant, *point.varied], space, f"hydra.sweeper.file={file}")
            for point in read_points(file, [], self.loader)
        ]
        for params in points:
            self.study.enqueue_trial(params, user_attrs={OWNER: self.owner}, skip_if_exists=True)

    def _add_earlier_trials(self, sweep: str, space: Mapping[str, BaseDistribution]) -> None:
        """Copy the finished trials of an earlier search into the study, unless they were copied already.

        Raises:
            InputError: the sweep is not a search, or its trials do not fit into this one.
        """
        request = f"hydra.sweeper.warm_start={sweep}"
        identity, earlier = _open_earlier_study(Path(sweep), request)
        metrics = identity.get("metrics", self.metrics)
        if metrics != self.metrics or earlier.directions != self.study.directions:
            raise InputError(
                f"{request}: a search by {', '.join(metrics)}, and not by {', '.join(self.metrics)}; start "
                "without it"
            )
        trials = earlier.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        for trial in trials:
            if not trial.params.keys() & space:
                raise InputError(f"{request}: a search of {', '.join(trial.params)}; start without it")
            for key in trial.params.keys() & space:
                try:
                    check_distribution_compatibility(trial.distributions[key], space[key])
                except ValueError as error:
                    raise InputError(
                        f"{request}: {key} was searched in {trial.distributions[key]}, now in {space[key]} "
                        f"({error}); search the same values, or start without it"
                    ) from error
        copied = {trial.user_attrs.get(EARLIER) for trial in self.study.get_trials(deepcopy=False)}
        for trial in trials:
            if (name := f"{identity['owner']} {trial.number}") not in copied:
                self.study.add_trial(
                    create_trial(
                        state=trial.state,
                        values=trial.values,
                        params=trial.params,
                        distributions=trial.distributions,
                        intermediate_values=trial.intermediate_values,
                        user_attrs={EARLIER: name},
                    )
                )
        print(f"warm start: {plural(len(trials), 'finished trial')} of {sweep}")


def _open_earlier_study(folder: Path, request: str) -> tuple[dict[str, Any], optuna.Study]:
    """Open the study of an earlier search, and read its name, storage and owner."""
    file, journal = folder / "study.json", folder / OWN_JOURNAL
    try:
        identity = json.loads(file.read_text())
    except OSError as error:
        raise InputError(f"{request}: not a search (no {file}); give the folder of one") from error
    if is_redacted(identity["storage"]):
        raise InputError(
            f"{request}: the URL of its storage is secret and was not recorded; give it as "
            "hydra.sweeper.storage with hydra.sweeper.study"
        )
    if identity["storage"] is None and not journal.exists():
        raise InputError(f"{request}: {journal} is missing; start without it")
    storage = open_storage(identity["storage"] or f"{JOURNAL}{journal.absolute()}")
    try:
        return identity, optuna.load_study(study_name=identity["study"], storage=storage)
    except KeyError as error:
        raise InputError(f"{request}: its storage lacks its study; start without it") from error


def _refuse_changed_categories(study: optuna.Study, space: Mapping[str, BaseDistribution]) -> None:
    """Refuse changed categories of a parameter, which Optuna does not allow within a study."""
    for trial in study.get_trials(deepcopy=False):
        for key, earlier in trial.distributions.items():
            now = space.get(key, earlier)
            if now != earlier and CategoricalDistribution in (type(now), type(earlier)):
                raise InputError(
                    f"{key}: the study {study.study_name} has trials with {earlier}, this search has {now}; "
                    "choose another hydra.sweeper.study"
                )
