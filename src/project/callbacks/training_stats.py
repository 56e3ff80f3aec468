"""Gradient norm, throughput and GPU memory of a training."""

import math
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from project.modules.metrics import log_metrics

MIN_SPEED_S = 1.0
"""Least time over which throughput is measured within an epoch; shorter epochs have it at their end."""


class TrainingStats(Callback):
    """Logs the gradient norm, throughput and GPU memory at the end of each logging interval.

    `train/grad_norm` is the norm of the gradient at the interval's last step: of all accumulated batches,
    over all ranks, unscaled and before clipping. `speed/images_per_s` counts the training images of all ranks
    over the time of training alone, without validation. `gpu/memory_gb` (10⁹ bytes) is the peak of allocated
    memory. Nothing is computed at other steps, and without loggers at none.
    """

    supports_batched_hooks = True

    def __init__(self) -> None:
        self._norm: Tensor | None = None
        self._is_active = False
        self._is_due = False
        self._step = 0
        self._images = 0
        self._train_s = 0.0
        self._started: float | None = None  # None while the clock is stopped
        self._has_logged_speed = False  # in this epoch

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._is_active = trainer.is_global_zero and bool(trainer.loggers)
        self._step = trainer.global_step  # counted from here, because asking the trainer takes longer

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._images, self._train_s = 0, 0.0
        self._started = time.perf_counter()
        self._has_logged_speed = False

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._started is not None:
            self._train_s += time.perf_counter() - self._started
            self._started = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        if self.wants_gradient(trainer):
            # Fused optimizers divide by the scale themselves, in their step.
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            fused = getattr(optimizer, "_step_supports_amp_scaling", False)
            self.take_gradient(optimizer, scaler._scale if scaler is not None and fused else None)

    def wants_gradient(self, trainer: L.Trainer) -> bool:
        """Return True if the next step ends an interval; to be called once per optimizer step."""
        if not self._is_active:
            return False
        self._step += 1
        self._is_due = self._step % trainer.log_every_n_steps == 0 or trainer.is_last_batch  # type: ignore[attr-defined]
        return self._is_due

    def take_gradient(self, optimizer: Optimizer, scale: Tensor | None) -> None:
        """Compute the norm of gradients that are still multiplied by `scale`, without waiting for it."""
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

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.on_optimizer_step(trainer, pl_module)

    def on_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log at the end of an interval; called after every batch, before the module starts another."""
        if not self._is_due:
            return
        self._is_due = False
        stats = {}
        if self._norm is not None:
            norm, self._norm = float(self._norm), None
            if math.isfinite(norm):  # not so for a step that mixed precision skips
                stats["train/grad_norm"] = norm
        metrics = getattr(pl_module, "train_metrics", None)
        self._images += trainer.world_size * getattr(metrics, "num_pending_images", 0)
        now = time.perf_counter()
        seconds = self._train_s + (0.0 if self._started is None else now - self._started)
        is_first_of_epoch = trainer.is_last_batch and seconds > 0 and not self._has_logged_speed
        if self._images and (seconds >= MIN_SPEED_S or is_first_of_epoch):
            stats["speed/images_per_s"] = self._images / seconds
            if pl_module.device.type == "cuda":
                stats["gpu/memory_gb"] = torch.cuda.max_memory_allocated(pl_module.device) / 1e9
            self._images, self._train_s = 0, 0.0
            self._started, self._has_logged_speed = now, True
        log_metrics(pl_module, stats)
