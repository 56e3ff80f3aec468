"""Search by Optuna: trials are asked for one by one, whenever devices are free."""

import json
import platform
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

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
from project.runs.sweep_folder import SweepFolder
from project.runs.sweep_jobs import Job, in_grammar
from project.runs.sweep_ledger import drop_torn_line
from project.runtime.secrets import is_redacted, redact
from project.runtime.text import did_you_mean
from project.sweeps.launchers.base import StreamingLauncher
from project.sweeps.settings import Count, Least, Positive, checked_options
from project.sweeps.sweepers.base import RecordedSweeper
from project.sweeps.sweepers.search_report import report
from project.sweeps.sweepers.search_space import corners, overrides_of, space_of
from project.sweeps.sweepers.trials import Trials

DIRECTIONS = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}


class Search(RecordedSweeper):
    """Trials suggested by an Optuna sampler, ended early by a pruner.

    Args:
        n_trials: of this sweep; other sweeps that share the study have their own.
        timeout_s: no trial is started later than so many seconds after the start; null: no limit.
        sampler: name, see `project.runs.studies.SAMPLERS`.
        sampler_options: of its constructor.
        pruner: name, see `project.runs.studies.PRUNERS`.
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

    @checked_options("hydra.sweeper")
    def __init__(
        self,
        n_trials: Count = 20,
        timeout_s: Positive | None = None,
        sampler: str = "tpe",
        sampler_options: Mapping[str, Any] | None = None,
        pruner: str = "none",
        pruner_options: Mapping[str, Any] | None = None,
        seed: Annotated[int, Least(0)] | None = None,
        objectives: Mapping[str, str] | None = None,
        storage: str | None = None,
        study: str | None = None,
        params: Mapping[str, Any] | None = None,
        seeds: Count = 1,
        folds: Annotated[int, Least(2)] | None = None,
        batch: Count = 1,
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
        self.identity: dict[str, Any] = {}
        self._refuse()

    def run_jobs(self, overrides: Sequence[str], jobs: list[Job]) -> int:
        """See `RecordedSweeper`."""
        given = {text.partition("=")[0] for text in overrides}
        params = [f"{key}={value}" for key, value in self.params.items() if key not in given]
        constant, space = space_of([*params, *overrides], self.loader)
        self._refuse_objectives()
        targets = self._probe(constant, space)
        self._identify()
        self.study = self._study(space)
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
    def owner(self) -> str:
        """By which a study knows the trials of this sweep, wherever its folder is moved."""
        return self.identity["owner"]

    @property
    def storage_url(self) -> str:
        """Where the study is kept."""
        return self.identity["storage"] or f"{JOURNAL}{self._own_journal.absolute()}"

    def pruning(self, trial: int) -> list[str]:
        """The override that gives a job its pruning."""
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
        """Fix what the study is called and where it is kept, once for the life of the sweep."""
        file = self.folder.path / "study.json"
        if file.exists():
            self.identity = json.loads(file.read_text())
            if is_redacted(self.identity["storage"]):  # a password in its address
                self.identity["storage"] = self.storage and absolute(self.storage)
            return
        storage = self.storage and absolute(self.storage)
        name = self.study_name or self.folder.path.absolute().name
        owner = f"{platform.node()}:{self.folder.path.absolute()}"
        self.identity = {"study": name, "storage": storage, "owner": owner}
        partial = file.with_suffix(".json.partial")
        partial.write_text(json.dumps(redact(self.identity), indent=2) + "\n")
        partial.replace(file)

    def _refuse_objectives(self) -> None:
        known = [f"{split}/{name}" for split in ("val", "test", "train") for name in ("acc", "loss")]
        known += ["duration_s", self.config.monitor]
        for name in self.objectives:
            if name not in known:
                raise InputError(f"hydra.sweeper.objectives.{name}: {did_you_mean(name, known)}")

    def _refuse(self) -> None:
        make_sampler(self.sampler, self.sampler_options, self.seed)
        make_pruner(self.pruner, self.pruner_options)
        for name, direction in self.objectives.items():
            if direction not in DIRECTIONS:
                hint = did_you_mean(direction, ("max", "min"))
                raise InputError(f"hydra.sweeper.objectives.{name}={direction}: {hint}")
        if self.storage is not None and self.study_name is None:
            raise InputError(
                f"hydra.sweeper.storage={self.storage}: a storage holds many studies; name one with "
                "hydra.sweeper.study=NAME"
            )
        if self.storage is not None:
            refuse_unwritable_storage(self.storage)
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

    def _study(self, space: Mapping[str, BaseDistribution]) -> optuna.Study:
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
                f"{', '.join(self.names)}"
            )
        known = study.get_trials(deepcopy=False)
        _refuse_other_choices(known, space, name)
        # A seed alone would make a resumed search, or a second machine, suggest the first points again.
        own = zlib.crc32(self.owner.encode()) if self.identity["storage"] else 0
        seed = None if self.seed is None else (self.seed + len(known) + own) % 2**32
        study.sampler = make_sampler(self.sampler, self.sampler_options, seed)
        study.pruner = make_pruner(self.pruner, self.pruner_options)
        return study

    def _in_batches(self, source: "Trials") -> int:
        """Ask for some trials, have them run, tell their results, and again."""
        while batch := [job for _ in range(self.batch) if (job := source.next()) is not None]:
            self._run_elsewhere(batch, source.overrides)
            for job in batch:
                source.ended(job)
        return 0


def _refuse_other_choices(
    trials: Sequence[FrozenTrial], space: Mapping[str, BaseDistribution], study: str
) -> None:
    """Optuna keeps the categories of a parameter for the whole study."""
    for trial in trials:
        for key, earlier in trial.distributions.items():
            now = space.get(key, earlier)
            if now != earlier and CategoricalDistribution in (type(now), type(earlier)):
                raise InputError(
                    f"{key}: the study {study} has trials with {earlier}, this search has {now}; choose "
                    "another hydra.sweeper.study"
                )
