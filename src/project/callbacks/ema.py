"""Exponential moving average of the weights."""

from typing import Annotated, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from project.runtime.bounds import Range


class EMA(Callback):
    """Exponential moving average of the weights, for evaluation (Polyak and Juditsky 1992).

    Validation, checkpoints and the trained network use the averaged weights. Training continues from the raw
    weights, which a checkpoint stores under `ema`. The decay grows with the number of steps, as
    min(decay, (1 + step) / (10 + step)), so that the average soon forgets the initial weights.

    Lightning's `EMAWeightAveraging` is not used: it also swaps or restores weights in `validate` and `test`
    of a loaded checkpoint after `fit`, and averages one parameter at a time.

    Args:
        decay: weight of the previous average in each step, 0 to below 1 [0]; 0: off.
    """

    supports_batched_hooks = True

    def __init__(self, decay: Annotated[float, Range(0, below=1)] = 0.0) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] = {}
        self._step = 0
        self._is_swapped = False  # if True, the module holds the average, and `average` the raw weights
        self._pairs: tuple[list[Tensor], list[Tensor]] | tuple[()] = ()  # averages and weights

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        weights = _float_tensors(pl_module)
        if self.decay:
            self.average = {name: weight.clone() for name, weight in weights.items()}
        # In a resumed run the module holds the average from the checkpoint.
        _copy(self._raw, weights)
        self._raw = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = max(self._step, trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.on_optimizer_step(trainer, pl_module)

    def on_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Update the average if an optimizer step was taken."""
        if not self.decay or trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        decay = min(self.decay, (1 + self._step) / (10 + self._step))
        if not self._pairs:
            weights = _float_tensors(pl_module)
            self._pairs = list(self.average.values()), [weights[name] for name in self.average]
        torch._foreach_lerp_(*self._pairs, 1 - decay)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.decay and trainer.state.fn == "fit":
            self._swap(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.decay and trainer.state.fn == "fit":
            self._swap(pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.decay:
            _copy(self.average, _float_tensors(pl_module))
            self._pairs = ()

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self.decay and trainer.state.fn == "fit":
            raw = self.average
            if not self._is_swapped:
                raw = {name: checkpoint["state_dict"][name] for name in self.average}
                checkpoint["state_dict"].update(self.average)
            checkpoint["ema"] = {"raw": raw, "step": self._step}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == "fit" and "ema" in checkpoint:
            self._raw = checkpoint["ema"]["raw"]
            self._step = checkpoint["ema"]["step"]

    def _swap(self, pl_module: L.LightningModule) -> None:
        weights = _float_tensors(pl_module)
        raw = {name: weights[name].clone() for name in self.average}
        _copy(self.average, weights)
        self.average, self._is_swapped = raw, not self._is_swapped
        self._pairs = ()


def _float_tensors(module: L.LightningModule) -> dict[str, Tensor]:
    """Return floating-point parameters and buffers; integer counters of batch norm are left out."""
    return {name: value for name, value in module.state_dict().items() if value.is_floating_point()}


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, value in source.items():
        target[name].copy_(value)
