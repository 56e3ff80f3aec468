"""Lightning's loops with exact resuming at the point where a checkpoint was written.

A checkpoint may be written after a batch, after its validation or at the end of an epoch. Lightning infers
the remaining work from its counters, and in some cases skips a validation, a plateau schedule's step or the
end of an epoch, or counts an epoch twice. These loops store in the checkpoint which work was done for the
last batch, and a resumed run does the rest. Tested with Lightning 2.6.
"""

from typing import Any

import torch
from lightning.pytorch.trainer.states import RunningStage

from project.runtime import lightning_private, signals
from project.runtime.lightning_private import DataFetcher, EpochCounts, EpochLoopBase, FitLoopBase
from project.runtime.torchrun import all_reduce_max
from project.training.metric_states import MetricStates


class ResumableEpochLoop(EpochLoopBase):
    """Epoch loop that stores in checkpoints which work was done for the last batch."""

    def __init__(self, trainer: Any, min_steps: int | None = None, max_steps: int = -1) -> None:
        super().__init__(trainer, min_steps=min_steps, max_steps=max_steps)
        self.metric_states = MetricStates(trainer)
        self._validated_at = -1  # number of trained batches at the last validation
        self._ended_at = -1  # number of trained batches whose `on_advance_end` is done

    @property
    def done(self) -> bool:
        return not self._batch_pending and bool(super().done)

    @property
    def _batch_pending(self) -> bool:
        """True if work after the checkpoint's last batch remains to be done."""
        return self.restarting and self._ended_at != self.batch_progress.total.ready

    @property
    def is_validation_done(self) -> bool:
        return not self._batch_pending

    def reset(self) -> None:
        if self.restarting:
            for progress in (self.batch_progress.total, self.batch_progress.current):
                progress.completed = progress.ready
            validated = self.val_loop.batch_progress
            if not validated.is_last_batch:  # an interrupted validation starts again
                for count in ("ready", "started", "processed", "completed"):
                    of_epoch = getattr(validated.total, count) - getattr(validated.current, count)
                    setattr(validated.total, count, of_epoch)
            self.val_loop.restarting = False
        else:
            super().reset()

    def advance(self, data_fetcher: DataFetcher) -> None:
        if not self._batch_pending:
            self.clear_restarting()
            super().advance(data_fetcher)

    def on_advance_end(self, data_fetcher: DataFetcher) -> None:
        trained = self.batch_progress.total.ready
        self.skip_next_validation(self._validated_at == trained)
        super().on_advance_end(data_fetcher)
        self.metric_states.end_validation()
        self._validated_at = self._ended_at = trained

    def is_validation_due(self, data_fetcher: DataFetcher) -> bool:
        is_due = super().is_validation_due(data_fetcher)
        if is_due:
            self.metric_states.start_validation()
        return is_due

    def on_save_checkpoint(self) -> dict[str, Any]:
        trained = self.batch_progress.total.ready
        validating = self.trainer.state.stage == RunningStage.VALIDATING
        just_validated = validating and self.val_loop.batch_progress.is_last_batch
        state: dict[str, Any] = super().on_save_checkpoint()
        return state | {
            "validated": just_validated or self._validated_at == trained,
            "ended": self._ended_at == trained,
            "metric_states": self.metric_states.save(repeats_validation=validating and not just_validated),
        }

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        super().on_load_checkpoint(state_dict)
        self.metric_states.load(state_dict.get("metric_states", []))
        total: Any = self.batch_progress.total
        # Checkpoints of Lightning's own loop have only counters.
        ended = state_dict.get("ended", total.completed == total.processed)
        self._ended_at = total.ready if ended else -1
        self._validated_at = total.ready if state_dict.get("validated", ended) else -1


class FitLoop(FitLoopBase):
    """Loop over epochs that resumes within or between epochs.

    At the end of an epoch, plateau schedules step before callbacks write checkpoints, not afterward.
    """

    def __init__(self, trainer: Any, min_epochs: int | None = 0, max_epochs: int | None = None) -> None:
        super().__init__(trainer, min_epochs=min_epochs, max_epochs=max_epochs)
        self._reopens = False  # if True, a limit ended the last epoch early

    def can_restart(self, restarting: bool) -> bool:
        # Only within an epoch that was started but not finished.
        _, epoch = self._epochs
        return restarting and epoch.started > epoch.processed

    @property
    def _epochs(self) -> tuple[EpochCounts, EpochCounts]:
        """Progress counters of epochs: total and current."""
        return self.epoch_progress.total, self.epoch_progress.current  # type: ignore[return-value]

    @property
    def done(self) -> bool:
        if self.restarting and self.max_batches:
            assert self.max_epochs is not None
            return bool(lightning_private.is_limit_reached(self._epochs[1].processed, self.max_epochs))
        return bool(super().done)

    def load_state_dict(self, state_dict: dict[str, Any], prefix: str = "") -> None:
        super().load_state_dict(state_dict, prefix)
        for progress in self._epochs:
            progress.ready = progress.started
            progress.completed = progress.processed
        _, epoch = self._epochs
        early = not self.epoch_loop.batch_progress.is_last_batch
        self._reopens = early and 0 < epoch.started == epoch.processed
        self.restarting = True

    def reset(self) -> None:
        torch.set_grad_enabled(True)
        self.note_restart(within_epoch=self.restarting)

    def on_run_start(self) -> None:
        super().on_run_start()  # modules may reset their metrics there
        self.epoch_loop.metric_states.restore()

    def on_advance_start(self) -> None:
        if self._reopens:
            self._reopens = False
            for progress in self._epochs:
                progress.processed -= 1
                progress.completed -= 1
            self.restarting = True
            self.note_restart(within_epoch=True)
        super().on_advance_start()

    def on_advance_end(self) -> None:
        trainer = self.trainer
        results = lightning_private.logger_connector(trainer)
        results.epoch_end_reached()
        self.epoch_progress.increment_processed()
        lightning_private.call_callback_hooks(trainer, "on_train_epoch_end", monitoring_callbacks=False)
        lightning_private.call_module_hook(trainer, "on_train_epoch_end")
        if self.epoch_loop.is_last_batch_done():
            self.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
        lightning_private.call_callback_hooks(trainer, "on_train_epoch_end", monitoring_callbacks=True)
        results.on_epoch_end()
        self.epoch_loop.log_epoch_metrics()
        self.epoch_progress.increment_completed()
        (signum,) = all_reduce_max(trainer, signals.requested())
        if signum:  # callbacks have saved the state
            raise signals.Stopped(signum)
