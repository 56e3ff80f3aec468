"""Logging of gradient norm, throughput, waiting for data and GPU memory."""

import math
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from project.modules.metrics import log_metrics

MIN_THROUGHPUT_WINDOW_S = 1.0
"""Minimum time over which throughput is averaged, s; in shorter epochs it is logged at the epoch's end."""


class TrainingStats(Callback):
    """Logs the gradient norm, throughput, waiting for data and GPU memory at the end of logging intervals.

    `train/grad_norm` is the L2 norm of the gradient in the interval's last step, accumulated over batches and
    ranks, unscaled and before clipping. `speed/images_per_s` is the training throughput of all ranks; time
    spent in validation does not count. `speed/data_wait_fraction` is the fraction of that time in which rank
    0 fetched batches: it waited for workers, or read, normalized and augmented images itself.
    `gpu/memory_gb` is the peak of allocated memory (10⁹ bytes). Nothing is computed in other steps, or
    without loggers.
    """

    supports_batched_hooks = True

    def __init__(self) -> None:
        self._grad_norm: Tensor | None = None
        self._is_active = False
        self._ends_interval = False
        self._step = 0
        self._num_images = 0
        self._train_s = 0.0
        self._clock_started_at: float | None = None  # None while the clock is stopped
        self._has_logged_throughput = False  # in this epoch
        self._data_wait_s = 0.0  # of the loop at the start of the window

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._is_active = trainer.is_global_zero and bool(trainer.loggers)
        self._step = trainer.global_step  # counted here, because `trainer.global_step` is slow

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._num_images, self._train_s = 0, 0.0
        self._clock_started_at = time.perf_counter()
        self._data_wait_s = _data_wait_s(trainer)
        self._has_logged_throughput = False

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._clock_started_at is not None:
            self._train_s += time.perf_counter() - self._clock_started_at
            self._clock_started_at = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._clock_started_at = time.perf_counter()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        self._step = trainer.global_step  # an optimizer with a closure may call this hook twice per step
        if self.wants_gradient(trainer):
            # Fused optimizers unscale gradients only within their step.
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            fused = getattr(optimizer, "_step_supports_amp_scaling", False)
            self.take_gradient(optimizer, scaler._scale if scaler is not None and fused else None)

    def wants_gradient(self, trainer: L.Trainer) -> bool:
        """Return True if the next step ends a logging interval; call once per optimizer step."""
        if not self._is_active:
            return False
        self._step += 1
        self._ends_interval = self._step % trainer.log_every_n_steps == 0 or trainer.is_last_batch  # type: ignore[attr-defined]
        return self._ends_interval

    def take_gradient(self, optimizer: Optimizer, scale: Tensor | None) -> None:
        """Compute the gradient norm without synchronizing with the device.

        Args:
            optimizer: optimizer of the parameters.
            scale: loss scale by which the gradients are still multiplied; None: they are unscaled.
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
            self._grad_norm = norm if scale is None else norm / scale

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.on_optimizer_step(trainer, pl_module)

    def on_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log if a logging interval ends; called after every batch, before the module resets its metrics."""
        if not self._ends_interval:
            return
        self._ends_interval = False
        stats = {}
        if self._grad_norm is not None:
            norm, self._grad_norm = float(self._grad_norm), None
            if math.isfinite(norm):  # mixed precision skips steps with infinite gradients
                stats["train/grad_norm"] = norm
        metrics = getattr(pl_module, "train_metrics", None)
        self._num_images += trainer.world_size * getattr(metrics, "num_pending_images", 0)
        now = time.perf_counter()
        seconds = self._train_s + (0.0 if self._clock_started_at is None else now - self._clock_started_at)
        is_first_of_epoch = trainer.is_last_batch and seconds > 0 and not self._has_logged_throughput
        if self._num_images and (seconds >= MIN_THROUGHPUT_WINDOW_S or is_first_of_epoch):
            stats["speed/images_per_s"] = self._num_images / seconds
            waited_s, self._data_wait_s = self._data_wait_s, _data_wait_s(trainer)
            if math.isfinite(waited_s):
                stats["speed/data_wait_fraction"] = (self._data_wait_s - waited_s) / seconds
            if pl_module.device.type == "cuda":
                stats["gpu/memory_gb"] = torch.cuda.max_memory_allocated(pl_module.device) / 1e9
            self._num_images, self._train_s = 0, 0.0
            self._clock_started_at, self._has_logged_throughput = now, True
        log_metrics(pl_module, stats)


def _data_wait_s(trainer: L.Trainer) -> float:
    """Return the time that training has waited for batches, s; NaN for a loop that does not measure it."""
    return float(getattr(trainer.fit_loop.epoch_loop, "data_wait_s", math.nan))
