"""What is measured beside loss and accuracy: the gradient's norm, throughput, memory of the GPU."""

import math
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

REPORT_S = 1.0
"""Seconds after which throughput is told within an epoch; in shorter ones at their end."""


class Measurements(Callback):
    """Adds to what the module logs at the end of an interval.

    `train/grad_norm` is the norm of the whole gradient at the step that ends the interval: of all
    accumulated batches, over all ranks, unscaled and before it is clipped. `speed/images_per_s` counts the
    training images of all ranks over the time of training alone, without validation, and
    `gpu/memory_gb` (10⁹ bytes) is the most that tensors have taken so far.

    Nothing is computed at other steps, and without loggers at none.
    """

    visits_chunks = True

    def __init__(self) -> None:
        self._norm: Tensor | None = None
        self._active = False
        self._step = 0
        self._images = 0.0
        self._seconds = 0.0
        self._since = 0.0  # when the clock was started; 0: it stands still
        self._told = False  # in this epoch

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget what earlier runs of this process took of the GPU."""
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count steps from here: asking the trainer at each of them takes longer."""
        self._active = trainer.is_global_zero and bool(trainer.loggers)
        self._step = trainer.global_step

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._images = self._seconds = 0.0
        self._since = time.perf_counter()
        self._told = False

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        if self._since:
            self._seconds += time.perf_counter() - self._since
            self._since = 0.0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let it go on."""
        self._since = time.perf_counter()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure a gradient, in steps that Lightning's own loop takes."""
        if self.wants_gradient(trainer):
            # Fused optimizers divide by the scale themselves, in their step.
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            fused = getattr(optimizer, "_step_supports_amp_scaling", False)
            self.take_gradient(optimizer, scaler._scale if scaler is not None and fused else None)

    def wants_gradient(self, trainer: L.Trainer) -> bool:
        """Whether the step that is about to be taken ends an interval; to be asked once a step."""
        if not self._active:
            return False
        self._step += 1
        return self._step % trainer.log_every_n_steps == 0 or trainer.is_last_batch  # type: ignore[attr-defined]

    def take_gradient(self, optimizer: Optimizer, scale: Tensor | None) -> None:
        """Compute the norm, where the gradients are and without waiting for it.

        Args:
            optimizer: of the parameters.
            scale: by which the gradients are multiplied still, if they are.
        """
        gradients = [
            weight.grad
            for group in optimizer.param_groups
            for weight in group["params"]
            if weight.grad is not None and not weight.grad.is_sparse
        ]
        if gradients:
            norms = torch._foreach_norm(gradients)
            norm = torch.stack([norm.float() for norm in norms]).norm()
            self._norm = norm if scale is None else norm / scale

    def measure(self, trainer: L.Trainer, pl_module: L.LightningModule, images: float) -> dict[str, float]:
        """Tell what there is to add at the end of an interval.

        Args:
            trainer: which trains.
            pl_module: the module.
            images: trained on since the last interval, on all ranks.
        """
        measured = {}
        if self._norm is not None:
            norm, self._norm = float(self._norm), None
            if math.isfinite(norm):  # of a step that mixed precision takes back it is not
                measured["train/grad_norm"] = norm
        self._images += images
        now = time.perf_counter()
        seconds = self._seconds + (now - self._since if self._since else 0.0)
        if seconds >= REPORT_S or (trainer.is_last_batch and seconds > 0 and not self._told):
            measured["speed/images_per_s"] = self._images / seconds
            if pl_module.device.type == "cuda":
                measured["gpu/memory_gb"] = torch.cuda.max_memory_allocated(pl_module.device) / 1e9
            self._images = self._seconds = 0.0
            self._since, self._told = now, True
        return measured

    def state_dict(self) -> dict[str, Any]:
        """A norm that was not logged yet when the checkpoint was written."""
        return {"norm": None if self._norm is None else float(self._norm)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Log it in the run that goes on."""
        norm = state_dict["norm"]
        self._norm = None if norm is None else torch.tensor(norm, dtype=torch.float32)
