"""Exponential moving average of the weights."""

from typing import Annotated, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from project.errors import InputError
from project.runtime.bounds import Range


class EMA(Callback):
    """Average the weights while training, and evaluate and keep the average.

    Validation during training, checkpoints and the trained network hold the average; training goes on from
    the raw weights, which a checkpoint keeps under `ema`. The decay rises with the steps
    taken, min(decay, (1 + step) / (10 + step)), so that short trainings are not held at their start.

    Lightning's own `EMAWeightAveraging` is not used: after `fit` it swaps or restores weights in
    `validate` and `test` of a loaded checkpoint too, and averages one parameter at a time.

    Args:
        decay: share of the average that a step keeps; 0 switches the average off.

    Raises:
        InputError: `decay` is outside [0, 1).
    """

    visits_chunks = True

    def __init__(self, decay: Annotated[float, Range(0, below=1)] = 0.0) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"callbacks.ema.decay={decay}: choose from 0 (off) to below 1, e.g. 0.999")
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] = {}
        self._step = 0
        self._validates = False  # the module holds the average, and `average` the raw weights
        self._pairs: (
            tuple[list[Tensor], list[Tensor]] | tuple[()]
        ) = ()  # averages and weights, while training

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start from the initial weights, or continue from a checkpoint's average."""
        weights = _floats(pl_module)
        if not self.decay:
            _copy(self._raw, weights)  # the run that goes on had an average
            self._raw = {}
            return
        if self._raw:  # restored: the module holds the average that the checkpoint kept
            self.average = {name: weight.clone() for name, weight in weights.items()}
            _copy(self._raw, weights)
            self._raw = {}
        else:
            self.average = {name: weight.clone() for name, weight in weights.items()}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count from the step that training goes on from."""
        self._step = max(self._step, trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the average, unless it was done within the chunk."""
        self.on_step(trainer, pl_module)

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Move the average after each optimizer step."""
        if not self.decay or trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        decay = min(self.decay, (1 + self._step) / (10 + self._step))
        if not self._pairs:
            weights = _floats(pl_module)
            self._pairs = list(self.average.values()), [weights[name] for name in self.average]
        torch._foreach_lerp_(*self._pairs, 1 - decay)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the average, while training."""
        if self.decay and trainer.state.fn == "fit":
            self._swap(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Train on with the raw weights."""
        if self.decay and trainer.state.fn == "fit":
            self._swap(pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the average in the module."""
        if self.decay:
            _copy(self.average, _floats(pl_module))
            self._pairs = ()

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the average as the checkpoint's weights, the raw ones beside it."""
        if self.decay and trainer.state.fn == "fit":
            raw = self.average
            if not self._validates:
                raw = {name: checkpoint["state_dict"][name] for name in self.average}
                checkpoint["state_dict"].update(self.average)
            checkpoint["ema"] = {"raw": raw, "step": self._step}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember the raw weights, from which training continues."""
        if trainer.state.fn == "fit" and "ema" in checkpoint:
            self._raw = checkpoint["ema"]["raw"]
            self._step = checkpoint["ema"]["step"]

    def _swap(self, pl_module: L.LightningModule) -> None:
        weights = _floats(pl_module)
        raw = {name: weights[name].clone() for name in self.average}
        _copy(self.average, weights)
        self.average, self._validates = raw, not self._validates
        self._pairs = ()


def _floats(module: L.LightningModule) -> dict[str, Tensor]:
    """Parameters and statistics; counters such as those of batch norm are left as they are."""
    return {name: value for name, value in module.state_dict().items() if value.is_floating_point()}


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, value in source.items():
        target[name].copy_(value)
