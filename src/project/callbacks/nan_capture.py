"""Record of a run that stopped because a loss or weight was NaN or infinite."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from project.callbacks.checkpointing import LastCheckpoint
from project.datamodules.image_base import ImageDataModule
from project.errors import NonFiniteError
from project.modules import nan_search
from project.modules.supervised import SupervisedModule
from project.runtime.atomic_files import replace_text

log = logging.getLogger(__name__)

REPORT, BATCH, WEIGHTS = "report.json", "batch.pt", "weights.pt"
"""Files in the folder: facts, the batch, and the weights before the step."""


class NanCapture(Callback):
    """Keeps the facts from which a training step with a NaN or infinite value can be repeated.

    `report.json` holds seed, epoch, batch and step of the first loss that is not finite, as far as known, and
    the last checkpoint with its step. `batch.pt` holds that batch. If the weights are still finite,
    `weights.pt` holds them, and the report names the first layer with an output that is not finite. Otherwise
    `scripts/replay.py` finds the layer by training again from the checkpoint. Nothing is done in the steps of
    a run that stays finite.

    Args:
        dirpath: folder of the files.
    """

    supports_batched_hooks = True

    def __init__(self, dirpath: str) -> None:
        self.folder = Path(dirpath)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if not isinstance(exception, NonFiniteError) or not trainer.is_global_zero:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            report = self._capture(trainer, pl_module) | {"error": str(exception)}
            replace_text(self.folder / REPORT, json.dumps(report, indent=2) + "\n")
        except (OSError, RuntimeError, ValueError) as error:  # the cause of the stop matters more
            log.warning("warning: %s could not be written (%s)", self.folder, error)
            return
        run = self.folder.parent
        log.info("the step is recorded in %s; to find the layer: scripts/replay.py run=%s", self.folder, run)

    def _capture(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        from_end = _batches_since_first(module)
        batch_idx = None if from_end is None else ready - from_end
        facts: dict[str, Any] = {
            "seed": int(os.environ.get("PL_GLOBAL_SEED", 0)),
            "epoch": trainer.current_epoch,
            "batch": batch_idx,
            "step": trainer.global_step,
            "non_finite_weight": nan_search.first_non_finite_weight(module),
            "layer": None,
        } | self._last_checkpoint(trainer)
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if batch_idx is None or batch_idx < 0 or not isinstance(datamodule, ImageDataModule):
            return facts
        batch = datamodule.training_batch(trainer.current_epoch, batch_idx)
        torch.save(nan_search.to_cpu(batch), self.folder / BATCH)
        if facts["non_finite_weight"] is None and isinstance(module, SupervisedModule):
            torch.save(nan_search.snapshot(module), self.folder / WEIGHTS)
            with (
                torch.no_grad(),
                trainer.precision_plugin.forward_context(),
                nan_search.watch_outputs(module.train()) as found,
            ):
                module.compute(trainer.precision_plugin.convert_input(batch))
            facts["layer"] = found[0]._asdict() if found else None
        return facts

    def _last_checkpoint(self, trainer: L.Trainer) -> dict[str, Any]:
        """Return the last checkpoint and its step; the training starts from its seed if there is none."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        keepers = [callback for callback in callbacks if isinstance(callback, LastCheckpoint)]
        if not keepers or keepers[0].saved_step <= 0:
            return {"checkpoint": None, "checkpoint_step": 0}
        return {"checkpoint": keepers[0].path.name, "checkpoint_step": keepers[0].saved_step}


def _batches_since_first(module: L.LightningModule) -> int | None:
    """Return the number of batches from the first loss that is not finite to the last; None if unknown."""
    metrics = getattr(module, "train_metrics", None)
    losses = torch.cat(metrics.read_losses) if metrics is not None and metrics.read_losses else torch.zeros(0)
    is_wrong = ~losses.isfinite()
    return len(losses) - int(is_wrong.nonzero()[0]) if is_wrong.any() else None
