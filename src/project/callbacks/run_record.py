"""Contents of checkpoints that a run needs with any LightningModule: configuration, metrics, loggers."""

from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor


class RunRecord(Callback):
    """Writes the run's configuration, its last metrics and the state of its loggers into checkpoints.

    A resumed run continues with these metrics and loggers.

    Args:
        config: plain values, from which the run can be built again.
    """

    supports_batched_hooks = True

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = dict(config)
        self._metrics: dict[str, Tensor] = {}

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["config"] = self.config
        if trainer.state.fn == "fit":
            checkpoint["record"] = {
                "callback_metrics": {
                    k: value.detach().cpu() for k, value in trainer.callback_metrics.items()
                },
                "loggers": {type(one).__name__: one.state_dict() for one in _with_state(trainer)},
            }

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != "fit":
            return
        # Earlier versions kept both among the module's own values.
        record = checkpoint.get("record", checkpoint.get("training", {}))
        self._metrics = record.get("callback_metrics", {})
        for logger in _with_state(trainer):
            if (name := type(logger).__name__) in record.get("loggers", {}):
                logger.load_state_dict(record["loggers"][name])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore(trainer)  # nothing was left to train

    def _restore(self, trainer: L.Trainer) -> None:
        trainer.callback_metrics.update(self._metrics)
        self._metrics = {}


def _with_state(trainer: L.Trainer) -> list[Any]:
    return [logger for logger in trainer.loggers if hasattr(logger, "state_dict")]
