"""Pruning of unpromising trials of an Optuna study."""

from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from project.errors import InputError
from project.runs.metric_names import is_of_split
from project.runs.optuna_studies import make_pruner, open_storage, silence_optuna


class TrialPruning(Callback):
    """Reports a metric to an Optuna study after each epoch, and stops the run if the trial is pruned.

    A metric named `val/…` is reported after each validation. Rank 0 reports through the study's storage; all
    ranks stop at the end of the same epoch. A run is not pruned after its last epoch.

    Args:
        storage: storage URL of the study (see `project.runs.optuna_studies.open_storage`).
        study: name of the study.
        trial: trial number of this run.
        monitor: name of the metric.
        pruner: name of the pruner (see `project.runs.optuna_studies.PRUNERS`).
        pruner_options: arguments of the pruner's constructor.

    Raises:
        InputError: the metric is not logged.
    """

    def __init__(
        self,
        storage: str,
        study: str,
        trial: int,
        monitor: str,
        pruner: str,
        pruner_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.storage = storage
        self.study = study
        self.trial = trial
        self.monitor = monitor
        self.pruner = pruner
        self.pruner_options = dict(pruner_options or {})
        self.pruned = False
        self._num_reports = 0

    @property
    def state_key(self) -> str:
        return "Pruning"  # the class's name in checkpoints of earlier versions

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not is_of_split(self.monitor, "val"):
            self._report(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if is_of_split(self.monitor, "val") and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._report(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"reports": self._num_reports, "pruned": self.pruned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._num_reports = state_dict["reports"]
        self.pruned = state_dict.get("pruned", False)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop |= self.pruned

    def _report(self, trainer: L.Trainer) -> None:
        if self.monitor not in trainer.callback_metrics:
            raise InputError(f"monitor={self.monitor}: pruning needs this metric, but it is not logged")
        value = float(trainer.callback_metrics[self.monitor])
        should_prune = trainer.is_global_zero and self._is_pruned_at(value)
        self._num_reports += 1
        should_prune = trainer.strategy.broadcast(should_prune)
        epochs = trainer.max_epochs or -1
        if should_prune and not 0 < epochs <= trainer.current_epoch + 1:
            self.pruned = True
            trainer.should_stop = True

    def _is_pruned_at(self, value: float) -> bool:
        """Report a value to the study; return True if the pruner stops the trial."""
        import optuna

        silence_optuna()
        storage = open_storage(self.storage)
        trial_id = storage.get_trial_id_from_study_id_trial_number(
            storage.get_study_id_from_name(self.study), self.trial
        )
        if value != value:  # storages reject NaN, and a diverged trial cannot recover
            return True
        storage.set_trial_intermediate_value(trial_id, self._num_reports, value)
        study = optuna.load_study(
            study_name=self.study, storage=storage, pruner=make_pruner(self.pruner, self.pruner_options)
        )
        return study.pruner.prune(study, storage.get_trial(trial_id))
