"""Ending trials of a search that promise nothing."""

from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from project.errors import InputError
from project.runs.studies import make_pruner, open_storage, silence


class Pruning(Callback):
    """Reports a metric after each validation to an Optuna study, and stops the run if it is told to.

    Rank 0 reports and asks, through the study's storage; all ranks stop at the end of the same epoch. A
    run that has trained its last epoch is not stopped any more.

    Args:
        storage: address of the study's storage, see `project.runs.studies.open_storage`.
        study: its name.
        trial: number of this run's trial in it.
        monitor: the metric.
        pruner: name of the pruner, see `project.runs.studies.PRUNERS`.
        pruner_options: of its constructor.
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
        self._reports = 0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report a metric of the training."""
        if not self.monitor.startswith("val/"):
            self._report(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report a metric of the validation."""
        if self.monitor.startswith("val/") and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._report(trainer)

    def state_dict(self) -> dict[str, Any]:
        """How often it has reported, and whether the run was given up: a resumed run counts on."""
        return {"reports": self._reports, "pruned": self.pruned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self._reports = state_dict["reports"]
        self.pruned = state_dict.get("pruned", False)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop a run again that had been given up when its checkpoint was written."""
        trainer.should_stop |= self.pruned

    def _report(self, trainer: L.Trainer) -> None:
        if self.monitor not in trainer.callback_metrics:
            raise InputError(f"monitor={self.monitor}: pruning needs it, but nobody logs it")
        value = float(trainer.callback_metrics[self.monitor])
        hopeless = trainer.is_global_zero and self._ask(value)
        self._reports += 1
        hopeless = trainer.strategy.broadcast(hopeless)
        epochs = trainer.max_epochs or -1
        if hopeless and not 0 < epochs <= trainer.current_epoch + 1:
            self.pruned = True
            trainer.should_stop = True

    def _ask(self, value: float) -> bool:
        """Whether the study gives the trial up, now that it knows this value too."""
        import optuna

        silence()
        storage = open_storage(self.storage)
        number = storage.get_trial_id_from_study_id_trial_number(
            storage.get_study_id_from_name(self.study), self.trial
        )
        if value == value:  # storages take no nan, and a trial that has come to it is lost
            storage.set_trial_intermediate_value(number, self._reports, value)
        else:
            return True
        study = optuna.load_study(
            study_name=self.study, storage=storage, pruner=make_pruner(self.pruner, self.pruner_options)
        )
        return study.pruner.prune(study, storage.get_trial(number))
