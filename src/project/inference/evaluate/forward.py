"""Forward pass of a run's network over a split, computed as in the run's test."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from project.datamodules.base import Split
from project.datamodules.image_base import ImageDataModule
from project.datamodules.loading.prefetch import explain_worker_failures
from project.errors import InputError, NonFiniteError
from project.inference.evaluate.metrics import Predictions
from project.inference.load_run import TrainedRun
from project.modules.losses import TotalWeight, total_weight_of
from project.modules.metrics import LossAndAccuracy

MAX_LOGITS_ON_DEVICE = 2**24
"""Number of logits that accumulate on the device before all are moved to the CPU."""


class LogitRecorder(LossAndAccuracy):
    """Loss and accuracy of a test, which also records all logits."""

    def __init__(self, total_weight: TotalWeight | None = None) -> None:
        super().__init__(total_weight)
        self._device_batches: list[tuple[Tensor, Tensor, Tensor]] = []
        self._cpu_batches: list[tuple[Tensor, Tensor, Tensor]] = []
        self._logits_on_device = 0

    def append(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        super().append(loss, logits, targets)
        logits = logits.detach()
        self._device_batches.append((logits, logits.argmax(dim=1), targets))
        self._logits_on_device += logits.numel()
        if self._logits_on_device > MAX_LOGITS_ON_DEVICE:
            self._move_to_cpu()

    def recorded(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (N, K) float32 or float64, predicted classes (N,) and labels (N,) on the CPU."""
        self._move_to_cpu()
        logits, predicted, labels = zip(*self._cpu_batches, strict=True)
        return torch.cat(logits), torch.cat(predicted), torch.cat(labels)

    def _move_to_cpu(self) -> None:
        for logits, predicted, labels in self._device_batches:
            # Per-image losses need more than half precision.
            dtype = logits.dtype if logits.dtype == torch.float64 else torch.float32
            self._cpu_batches.append((logits.to("cpu", dtype), predicted.cpu(), labels.cpu()))
        self._device_batches.clear()
        self._logits_on_device = 0


def set_up_split(data: ImageDataModule, split: Split) -> None:
    """Set up a split of a data set; refuse an empty split."""
    data.setup("test" if split == "test" else "fit")
    if not data.count(split):
        raise InputError(
            f"split={split}: the data has no such images (data.val_size={data.val_size:g}); choose "
            "split=test or train, or give other data"
        )


@dataclass(frozen=True)
class ForwardResult:
    """Result of one forward pass over a split.

    Args:
        predictions: predictions for N images.
        loss: loss as in the run's `test/loss`; None for an ensemble whose loss does not accept probabilities.
        accuracy: accuracy as in the run's `test/acc`.
        rows: indices (N,) of the images in `ImageDataModule.subset`.
        device: device type, such as `cpu`.
        precision: Lightning's precision, such as `32-true`.
    """

    predictions: Predictions
    loss: float | None
    accuracy: float
    rows: Tensor
    device: str
    precision: str


@explain_worker_failures()
def run_forward(trained: TrainedRun, split: Split, tta: str, **trainer_changes: Any) -> ForwardResult:
    """Run a network over a split on one device, with the code of the run's test.

    Args:
        trained: the network and its data.
        split: the split.
        tta: test-time augmentation; see `project.modules.tta`.
        trainer_changes: arguments of `TrainedRun.trainer`.

    Raises:
        InputError: the split has no images or cannot be read.
        NonFiniteError: a logit is NaN or infinite.
    """
    module, recorder = trained.module, LogitRecorder(trained.module.total_weight)
    module.eval_metrics, module.tta = recorder, tta
    trainer, data = trained.trainer(**trainer_changes), trained.datamodule
    data.trainer = trainer  # chooses the device of the batches
    data.prepare_data()
    set_up_split(data, split)
    try:
        trainer.test(module, dataloaders=data.evaluation_loader(split), verbose=False)
    except SystemExit as end:  # Lightning turns Ctrl-C into this
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    logits, predicted, labels = recorder.recorded()
    if not logits.isfinite().all():
        bad = int((~logits.isfinite()).any(1).sum())
        raise NonFiniteError(
            f"run={trained.run.shown}: its outputs are NaN or infinite for {bad} of {len(logits)} images; "
            "its training diverged, or its precision is too low; see its train.log"
        )
    loss = float(trainer.callback_metrics["test/loss"])
    predictions = Predictions(
        log_probabilities=logits.log_softmax(1),
        labels=labels,
        predicted=predicted,
        losses=image_losses(module.loss, logits, labels, loss),
    )
    return ForwardResult(
        predictions=predictions,
        loss=loss,
        accuracy=float(trainer.callback_metrics["test/acc"]),
        rows=data.subset(split).rows[: len(labels)],
        device=str(trainer.strategy.root_device.type),
        precision=str(trainer.precision),
    )


def image_losses(loss: nn.Module, logits: Tensor, labels: Tensor, mean: float) -> Tensor | None:
    """Return per-image losses (N,); None if the batch loss is not their mean, as with class weights."""
    if isinstance(loss, nn.CrossEntropyLoss):
        if total_weight_of(loss) is not None:
            return None
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=loss.label_smoothing)
    else:
        scalar_loss: Callable[..., Tensor] = loss.to(logits.device)
        pairs = zip(logits.split(1), labels.split(1), strict=True)
        with torch.inference_mode():
            losses = torch.stack([scalar_loss(image, label) for image, label in pairs])
        if losses.ndim != 1:
            return None
    is_near = abs(float(losses.double().mean()) - mean) <= 1e-2 * max(abs(mean), 1e-3)
    return losses if is_near else None
