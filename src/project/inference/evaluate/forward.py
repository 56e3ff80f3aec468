"""A run's network over the images of a split, as the run itself tested it, with what it said of each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from project.datamodules.base import ImageDataModule, Split
from project.datamodules.loading.loader import ImageLoader
from project.datamodules.loading.workers import naming_worker_failures
from project.errors import InputError, NonFiniteError
from project.inference.evaluate.metrics import Predictions
from project.inference.load_run import Trained
from project.modules.losses import TotalWeight, total_weight_of
from project.modules.metrics import LossAndAccuracy

HELD_LOGITS = 2**24
"""That stay on the device until they are moved to the CPU, together."""


class Recorder(LossAndAccuracy):
    """The metrics by which a run has its `test/loss` and `test/acc`; keeps all logits too."""

    def __init__(self, total_weight: TotalWeight | None = None) -> None:
        super().__init__(total_weight)
        self._device_parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._count = 0

    def append(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """See `LossAndAccuracy.append`."""
        super().append(loss, logits, targets)
        logits = logits.detach()
        self._device_parts.append((logits, logits.argmax(dim=1), targets))
        self._count += logits.numel()
        if self._count > HELD_LOGITS:
            self._move()

    def recorded(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (N, K) float32 or float64, the classes chosen (N,) and the labels (N,), on the CPU."""
        self._move()
        logits, chosen, labels = zip(*self._parts, strict=True)
        return torch.cat(logits), torch.cat(chosen), torch.cat(labels)

    def _move(self) -> None:
        for logits, chosen, labels in self._device_parts:
            # A view, or half the precision, is copied: the loss of single images is computed from it.
            exact = logits.dtype if logits.dtype == torch.float64 else torch.float32
            self._parts.append((logits.to("cpu", exact), chosen.cpu(), labels.cpu()))
        self._device_parts.clear()
        self._count = 0


def set_up(data: ImageDataModule, split: Split) -> None:
    """Read a split.

    Raises:
        InputError: there is none.
    """
    data.setup("test" if split == "test" else "fit")
    if not data.count(split):
        raise InputError(
            f"split={split}: the data has no such images (data.val_size={data.val_size:g}); choose "
            "split=test or train, or give other data"
        )


class OneSplit(L.LightningDataModule):
    """Has Lightning test any split of a data set: every image once, unchanged, in order.

    Args:
        data: the data set.
        split: of it.
    """

    def __init__(self, data: ImageDataModule, split: Split) -> None:
        super().__init__()
        self.data = data
        self.split = split

    def prepare_data(self) -> None:
        """Have the data fetched if need be."""
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        """Read the split.

        Raises:
            InputError: there is none.
        """
        self.data.trainer = self.trainer
        set_up(self.data, self.split)

    def test_dataloader(self) -> ImageLoader:
        """The split's images."""
        return self.data.evaluation_loader(self.split)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Do nothing: batches are made on the device."""
        return batch


@dataclass(frozen=True)
class Pass:
    """What came of one pass over the images.

    Args:
        predictions: of each of them.
        loss: as a run computes `test/loss`; None for several networks together whose loss takes no
            probabilities.
        acc: as a run computes `test/acc`.
        rows: (N,): numbers of the images in what `ImageDataModule.part` has of the split.
        device: on which it was computed.
        precision: with which.
    """

    predictions: Predictions
    loss: float | None
    acc: float
    rows: Tensor
    device: str
    precision: str


@naming_worker_failures()
def run_over(trained: Trained, split: Split, views: str, **trainer_changes: Any) -> Pass:
    """Evaluate a network once, on one device, by the path that a run's own test takes.

    Args:
        trained: the network and its data.
        split: of the data.
        views: copies of an image whose logits are averaged, see `project.modules.tta`.
        trainer_changes: for `Trained.trainer`.

    Raises:
        InputError: there are no such images, or none of the data.
        NonFiniteError: the network gives something else than numbers.
    """
    module, recorder = trained.module, Recorder(trained.module.total_weight)
    module.eval_metrics, module.test_views = recorder, views
    trainer = trained.trainer(**trainer_changes)
    try:
        trainer.test(module, datamodule=OneSplit(trained.datamodule, split), verbose=False)
    except SystemExit as end:  # Lightning's answer to Ctrl-C
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    metrics = trainer.callback_metrics
    logits, chosen, labels = recorder.recorded()
    if not logits.isfinite().all():
        bad = int((~logits.isfinite()).any(1).sum())
        raise NonFiniteError(
            f"run={trained.run.shown}: its outputs are nan or inf for {bad} of {len(logits)} images; "
            "its training diverged, or its precision is too low: see its train.log"
        )
    loss = float(metrics["test/loss"])
    log_probabilities = logits.log_softmax(1)
    predictions = Predictions(
        log_probabilities=log_probabilities,
        labels=labels,
        chosen=chosen,
        losses=single_losses(module.loss, logits, labels, loss),
    )
    rows = trained.datamodule.part(split).rows[: len(labels)]
    device = str(trainer.strategy.root_device.type)
    return Pass(predictions, loss, float(metrics["test/acc"]), rows, device, str(trainer.precision))


def single_losses(loss: nn.Module, logits: Tensor, labels: Tensor, mean: float) -> Tensor | None:
    """The loss of each image (N,), or None if their mean is not that of the batches, as with class weights.

    Args:
        loss: maps logits (B, K) and labels (B,) to a scalar.
        logits: (N, K).
        labels: (N,).
        mean: what the batches gave.
    """
    if isinstance(loss, nn.CrossEntropyLoss):
        if total_weight_of(loss) is not None:
            return None
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=loss.label_smoothing)
    else:
        own: Callable[..., Tensor] = loss.to(logits.device)
        pairs = zip(logits.split(1), labels.split(1), strict=True)
        with torch.inference_mode():
            losses = torch.stack([own(image, label) for image, label in pairs])
        if losses.ndim != 1:
            return None
    near = abs(float(losses.double().mean()) - mean) <= 1e-2 * max(abs(mean), 1e-3)
    return losses if near else None
