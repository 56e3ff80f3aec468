"""Images, tables, embeddings and the network graph of a run, for TensorBoard and tracking services."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from project.callbacks.predictions import ImagePredictions, PredictionCollector, classification_report
from project.errors import one_line
from project.figures import confusion_matrix, contact_sheet, to_uint8
from project.figures.contact_sheet import mistake_captions
from project.loggers.tracking import VisualLogger
from project.modules.classifier import ImageClassifier
from project.modules.image_logging import MAX_TILE
from project.runtime.bounds import Range

log = logging.getLogger(__name__)

MAX_CLASSES = 1000
"""Largest number of classes of a confusion matrix that is drawn."""
MAX_CAPTION_LABELS = 3


class TestVisuals(Callback):
    """Sends images to loggers that take them, such as `TensorBoard` (see `VisualLogger`).

    After the first epoch: the first augmented training images. After the test: the confusion matrix, the
    worst mistakes, a classification report, the network graph and embeddings of some test images. A failure
    to draw is logged as a warning and does not stop the run.

    Args:
        max_images: maximum number of images on a contact sheet [24]; 0: no contact sheets.
        max_embeddings: maximum number of test images with embeddings [500]; 0: no embeddings.
    """

    __test__ = False  # pytest would collect the class because of its name
    supports_batched_hooks = True

    def __init__(
        self,
        max_images: Annotated[int, Range(0, 1000)] = 24,
        max_embeddings: Annotated[int, Range(0, 10_000)] = 500,
    ) -> None:
        self.max_images = max_images
        self.max_embeddings = max_embeddings
        self._collector = PredictionCollector()
        self._predictions: ImagePredictions | None = None
        self._first_batch: tuple[Tensor, Tensor] | None = None
        self._has_first_batch = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._has_first_batch = not self._image_loggers(trainer) or trainer.global_step > 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._has_first_batch:
            return
        self._has_first_batch = True
        images, targets = batch
        if images.ndim == 4 and images.shape[1] in (1, 3) and self.max_images:
            kept = [part[: self.max_images].detach().to("cpu", copy=True) for part in (images, targets)]
            self._first_batch = kept[0], kept[1]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._first_batch is not None:
            (images, targets), self._first_batch = self._first_batch, None
            self._draw_or_warn("training images", lambda: self._log_training_images(trainer, images, targets))

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._collector = PredictionCollector()

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if isinstance(pl_module, ImageClassifier) and _accepts_images(trainer):
            self._collector.append(outputs, batch[1])

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._predictions = None
        if _accepts_images(trainer):
            self._draw_or_warn("test predictions", self._gather)

    def _gather(self) -> None:
        self._predictions = self._collector.gather()

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        predictions, self._predictions = self._predictions, None
        if not self._image_loggers(trainer) or predictions is None or not len(predictions.labels):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        has_images = data.input_shape[0] in (1, 3)
        wrong = int((predictions.predictions != predictions.labels).sum())
        if data.num_classes <= MAX_CLASSES:
            self._draw_or_warn("confusion matrix", lambda: self._log_confusion(trainer, predictions))
        if has_images and wrong and self.max_images:
            self._draw_or_warn("worst mistakes", lambda: self._log_mistakes(trainer, predictions, wrong))
        self._draw_or_warn("classification report", lambda: self._log_classes(trainer, predictions))
        self._draw_or_warn("network graph", lambda: self._log_graph(trainer, pl_module))
        if has_images and self.max_embeddings:
            self._draw_or_warn("embeddings", lambda: self._log_embeddings(trainer, pl_module, predictions))

    def _draw_or_warn(self, name: str, draw: Callable[[], None]) -> None:
        try:
            draw()
        except Exception as error:
            log.warning("warning: not logged: %s: %s", name, one_line(error))

    def _image_loggers(self, trainer: L.Trainer) -> list[VisualLogger]:
        """Return the loggers that accept images; an empty list except on rank 0."""
        if not trainer.is_global_zero or not _accepts_images(trainer):
            return []
        return [logger for logger in trainer.loggers if isinstance(logger, VisualLogger)]

    def _log_training_images(self, trainer: L.Trainer, images: Tensor, targets: Tensor) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        pixels = to_uint8(images.float(), data.mean, data.std)
        target_type = getattr(data, "target_type", "class")
        captions = [_target_caption(target, data.class_names, target_type) for target in targets]
        title = "Augmented training images"
        self._log_image(trainer, "train/images", _sheet(pixels, captions, title))

    def _log_confusion(self, trainer: L.Trainer, predictions: ImagePredictions) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        counts = predictions.confusion(data.num_classes)
        correct, images = int(counts.diag().sum()), len(predictions.labels)
        title = f"Test: {correct:,} of {images:,} correct ({correct / images:.4f})"
        self._log_image(trainer, "test/confusion", confusion_matrix(counts, data.class_names, title=title))

    def _log_mistakes(self, trainer: L.Trainer, predictions: ImagePredictions, wrong: int) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        worst, names = predictions.worst(self.max_images), data.class_names
        columns = (predictions.indices, predictions.labels, predictions.predictions, predictions.confidences)
        files = data.files("test") if hasattr(data, "files") else None
        rows = zip(*(column[worst].tolist() for column in columns), strict=True)
        captions = mistake_captions(rows, names, files, width=MAX_TILE)
        title = f"Worst of {wrong:,} mistakes on the test split: true → predicted (probability)"
        pixels = data.pixels("test", predictions.indices[worst])
        self._log_image(trainer, "test/mistakes", contact_sheet(pixels, captions, title=title, tile=MAX_TILE))

    def _log_image(self, trainer: L.Trainer, tag: str, image: Any) -> None:
        for logger in self._image_loggers(trainer):
            logger.log_image(tag, image, trainer.global_step)

    def _log_classes(self, trainer: L.Trainer, predictions: ImagePredictions) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        text = classification_report(predictions.confusion(data.num_classes), data.class_names)
        for logger in self._image_loggers(trainer):
            logger.log_markdown("test/classes", text, trainer.global_step)

    def _log_graph(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        images = torch.zeros(1, *data.input_shape, device=module.device)
        with _uncompiled_forward(trainer, module, images) as (network, run, inputs):
            for logger in self._image_loggers(trainer):
                logger.log_network(network, run, inputs)

    def _log_embeddings(
        self, trainer: L.Trainer, module: L.LightningModule, predictions: ImagePredictions
    ) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        count = min(self.max_embeddings, len(predictions.labels))
        chosen = torch.linspace(0, len(predictions.labels) - 1, count).long()
        pixels = data.pixels("test", predictions.indices[chosen])
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
        parts = []
        for part in pixels.split(data.eval_batch_size):
            images = ((part / 255 - mean) / std).to(module.device)
            with _uncompiled_forward(trainer, module, images) as (network, run, _):
                parts.append(penultimate_features(network, run).cpu())
        pairs = zip(
            predictions.labels[chosen].tolist(), predictions.predictions[chosen].tolist(), strict=True
        )
        names = data.class_names
        rows = [
            (names[label], names[prediction], "yes" if label == prediction else "no")
            for label, prediction in pairs
        ]
        for logger in self._image_loggers(trainer):
            logger.log_embeddings("test", torch.cat(parts), ("class", "prediction", "correct"), rows, pixels)


def _accepts_images(trainer: L.Trainer) -> bool:
    """Return True if a logger accepts images and the data module provides them; equal on all ranks."""
    has_image_logger = any(isinstance(logger, VisualLogger) for logger in trainer.loggers)
    return has_image_logger and hasattr(trainer.datamodule, "pixels")  # type: ignore[attr-defined]


@contextmanager
def _uncompiled_forward(
    trainer: L.Trainer, module: L.LightningModule, images: Tensor
) -> Iterator[tuple[nn.Module, Callable[[], Tensor], Tensor]]:
    """Yield the network in evaluation mode, a function that returns its logits, and its input.

    The function runs the uncompiled network in the precision of the run. The input has the precision and
    memory format of the run.
    """
    network: Any = module.network
    inputs = trainer.precision_plugin.convert_input(images).contiguous(memory_format=module.memory_format)
    was_training = network.training
    network.eval()
    try:
        with trainer.precision_plugin.forward_context():
            yield network, lambda: network._call_impl(inputs), inputs
    finally:
        network.train(was_training)


def penultimate_features(network: nn.Module, run: Callable[[], Tensor]) -> Tensor:
    """Return the input (B, D) of the linear layer that outputs the logits; if none, the logits (B, K)."""
    found: list[tuple[Tensor, Tensor]] = []

    def keep(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim == 2:
            found.append((inputs[0], output))

    with ExitStack() as hooks, torch.inference_mode():
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                hooks.callback(layer.register_forward_hook(keep).remove)
        logits = run()
    features = [features for features, output in found if output.shape == logits.shape]
    return (features[-1] if features else logits).float()


def _sheet(pixels: Any, captions: Sequence[str], title: str) -> Any:
    is_large = max(pixels.shape[2:]) > MAX_TILE
    return contact_sheet(pixels, captions, title=title, tile=MAX_TILE if is_large else None)


def _target_caption(target: Tensor, class_names: Sequence[str], target_type: str = "class") -> str:
    """Return the target of a training image.

    Classification: the class, or its two largest probabilities after mixup and cutmix. Multi-label: the
    labels that are present. Regression: the first values.
    """
    if target.ndim == 0:
        return class_names[int(target)]
    if target_type == "multilabel":
        present = [name for name, value in zip(class_names, target.tolist(), strict=True) if value > 0.5]
        return ", ".join(present[:MAX_CAPTION_LABELS]) + (", …" if present[MAX_CAPTION_LABELS:] else "")
    if target_type == "real":
        return ", ".join(f"{value:.3g}" for value in target.tolist()[:MAX_CAPTION_LABELS])
    shares, classes = target.float().topk(min(2, len(target)))
    pairs = zip(shares.tolist(), classes.tolist(), strict=True)
    return "\n".join(f"{class_names[index]} {share:.2f}" for share, index in pairs if share >= 0.005)
