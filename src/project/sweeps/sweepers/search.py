"""The Optuna sweeper: asks a sampler for one trial after the other, whenever devices are free."""

import json
import platform
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection

from project.errors import InputError
from project.runs.studies import (
    JOURNAL,
    absolute,
    make_pruner,
    make_sampler,
    open_storage,
    refuse_unwritable_storage,
    silence,
)
from project.runs.sweep_jobs import Job, in_grammar
from project.runs.sweep_ledger import drop_torn_line
from project.runtime.bounds import Range
from project.runtime.files import replace_text
from project.runtime.secrets import is_redacted, redact
from project.runtime.text import did_you_mean
from project.sweeps.settings import checked_options
from project.sweeps.sweepers.base import RecordedSweeper
from project.sweeps.sweepers.search_report import write_report
from project.sweeps.sweepers.search_space import find_corners, parse_space, trial_overrides
from project.sweeps.sweepers.trials import TrialSource

DIRECTIONS = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}


class OptunaSweeper(RecordedSweeper):
    """Search with trials that an Optuna sampler suggests and a pruner may end early.

    Args:
        n_trials: number of trials of this sweep; other sweeps that share the study have their own.
        timeout_s: time after which no trial starts [s] (None: no limit).
        sampler: name in `project.runs.studies.SAMPLERS`.
        sampler_options: arguments of the sampler's constructor.
        pruner: name in `project.runs.studies.PRUNERS`.
        pruner_options: arguments of the pruner's constructor.
        seed: seed of the sampler.
        objectives: metrics, each with `max` or `min` (None: `monitor`); several give a Pareto front.
        storage: address of the study's storage (None: a journal file in the sweep's folder).
        study: name of the study, needed with a storage.
        params: more keys of the space, in Hydra's grammar.
        seeds: runs of each trial, whose mean is its value.
        folds: runs of each trial for cross-validation.
        batch: trials at a time on launchers of other packages.
        changed_code: resume although the code changed since the sweep began.
    """

    @checked_options("hydra.sweeper")
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
        seeds: Annotated[int, Range(1)] = 1,
        folds: Annotated[int, Range(2)] | None = None,
        batch: Annotated[int, Range(1)] = 1,
        changed_code: bool = False,
    ) -> None:
        super().__init__(seeds, folds, changed_code)
        silence()
        self.n_trials = n_trials
        self.timeout_s = timeout_s
        self.sampler, self.sampler_options = sampler, dict(sampler_options or {})
        self.pruner, self.pruner_options = pruner, dict(pruner_options or {})
        self.seed = seed
        self.objectives = dict(objectives or {})
        self.storage, self.study_name = storage, study
        self.params = dict(params or {})
        self.batch = batch
        self.identity: dict[str, Any] = {}
        self._refuse_settings()

    def run_jobs(self, overrides: Sequence[str], jobs: list[Job]) -> int:
        given = {text.partition("=")[0] for text in overrides}
        params = [f"{key}={value}" for key, value in self.params.items() if key not in given]
        constant, space = parse_space([*params, *overrides], self.loader)
        self._refuse_objectives()
        probes = [
            Job(number, [*constant, *trial_overrides(values)], [], "probe")
            for number, values in enumerate(find_corners(space))
        ]
        targets = self.check_jobs(probes)
        self._identify()
        self.study = self._open_study(space)
        source = TrialSource(self, self.study, constant, space, jobs)
        source.settle()
        return self.run_source(source, jobs, self.n_trials * self.seeds * (self.folds or 1), targets)

    def summarize(self) -> str:
        return write_report(self.folder, self.study, self.metrics)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics to optimize."""
        return list(self.objectives) or [self.config.monitor]

    @property
    def owner(self) -> str:
        """Name of this sweep in the study, also after its folder moved."""
        return self.identity["owner"]

    @property
    def storage_url(self) -> str:
        return self.identity["storage"] or f"{JOURNAL}{self._own_journal.absolute()}"

    def pruning_overrides(self, trial: int) -> list[str]:
        """Return the overrides that add the pruning callback to a job."""
        if self.pruner == "none":
            return []
        fields = {
            "_target_": "project.callbacks.pruning.Pruning",
            "storage": self.storage_url,
            "study": self.identity["study"],
            "trial": trial,
            "pruner": self.pruner,
            "pruner_options": self.pruner_options,
        }
        return [f"+callbacks.pruning={in_grammar(fields)}", "+callbacks.pruning.monitor=${monitor}"]

    @property
    def _own_journal(self) -> Path:
        return self.folder.path / "study.journal"

    def _identify(self) -> None:
        """Fix the name and the storage of the study for the life of the sweep."""
        file = self.folder.path / "study.json"
        storage = self.storage and absolute(self.storage)
        if file.exists():
            self.identity = json.loads(file.read_text())
            if is_redacted(self.identity["storage"]):  # a password in its address
                self.identity["storage"] = storage
            return
        folder = self.folder.path.absolute()
        owner = f"{platform.node()}:{folder}"
        self.identity = {"study": self.study_name or folder.name, "storage": storage, "owner": owner}
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
                    f"hydra.sweeper.storage={self.storage}: a storage holds many studies; name one with "
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
        known = [f"{split}/{name}" for split in ("val", "test", "train") for name in ("acc", "loss")]
        known += ["duration_s", self.config.monitor]
        for name in self.objectives:
            if name not in known:
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
        _refuse_other_choices(study, space)
        # A seed alone would make a resumed search, or a second machine, suggest the first points again.
        own = zlib.crc32(self.owner.encode()) if self.identity["storage"] else 0
        known = len(study.get_trials(deepcopy=False))
        seed = None if self.seed is None else (self.seed + known + own) % 2**32
        study.sampler = make_sampler(self.sampler, self.sampler_options, seed)
        study.pruner = make_pruner(self.pruner, self.pruner_options)
        return study


def _refuse_other_choices(study: optuna.Study, space: Mapping[str, BaseDistribution]) -> None:
    """Refuse other categories of a parameter: Optuna keeps them for the whole study."""
    for trial in study.get_trials(deepcopy=False):
        for key, earlier in trial.distributions.items():
            now = space.get(key, earlier)
            if now != earlier and CategoricalDistribution in (type(now), type(earlier)):
                raise InputError(
                    f"{key}: the study {study.study_name} has trials with {earlier}, this search has {now}; "
                    "choose another hydra.sweeper.study"
                )
