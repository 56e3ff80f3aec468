"""What TensorBoard shows beside curves: pictures, tables, the network, what it sees in the images."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from project.callbacks.answers import Answers, Collector, as_markdown
from project.callbacks.features import last_features
from project.callbacks.spending import Spending
from project.errors import InputError, one_line
from project.pictures import confusion_matrix, contact_sheet, to_uint8

log = logging.getLogger(__name__)

THUMBNAIL = 64
"""Largest side of a thumbnail, pixels."""
LARGEST_TILE = 128
"""Width of the images on a sheet, pixels."""
MOST_CLASSES = 1000
"""Of a confusion matrix that is drawn."""
COST_S = {
    "confusion": 0.09,
    "mistakes": 0.06,
    "samples": 0.06,
    "classes": 0.005,
    "graph": 0.05,
    "points": 0.2,
}
"""What may be drawn, in the order of importance, with the seconds that each takes on a busy core. What a
machine takes longer for is learned from what was drawn before; the network's own time comes on top."""


class Story(Callback):
    """Writes to loggers that take pictures: of the test its confusion matrix, the worst mistakes, a table of
    the classes and the network's features of some images; training images as they are augmented; the
    network's graph.

    All that takes at most `budget` of the run's time, or `least_s`; what would exceed it is left out, by
    the order of `COST_S`, and named in the log. A run that is not tested shows its training images alone.

    Args:
        budget: share of the run's time, 0 to 1; 1 draws all, 0 nothing.
        least_s: seconds that it may take however short the run is; not in sweeps.
        images: most images on a sheet.
        points: most test images whose features are shown.

    Raises:
        InputError: a value is out of its range.
    """

    visits_chunks = True

    def __init__(
        self, budget: float = 0.03, least_s: float = 0.6, images: int = 24, points: int = 500
    ) -> None:
        if not 0 <= budget <= 1:
            raise InputError(f"callbacks.story.budget={budget}: must be at least 0 and at most 1")
        for name, value in (("least_s", least_s), ("images", images), ("points", points)):
            if value < 0:
                raise InputError(f"callbacks.story.{name}={value}: must be at least 0")
        self.images = images
        self.points = points
        self.spending = Spending(budget, least_s, COST_S)
        self._collector = Collector()
        self._answers: Answers | None = None
        self._first: tuple[Tensor, Tensor] | None = None
        self._looked = False
        self._test_s = 0.0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the first batch of a training that begins."""
        self._looked = not self._boards(trainer) or trainer.global_step > 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep some images of it."""
        if self._looked:
            return
        self._looked = True
        images, targets = batch
        if images.shape[1] in (1, 3) and self.images:
            kept = [part[: self.images].detach().to("cpu", copy=True) for part in (images, targets)]
            self._first = kept[0], kept[1]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show them as soon as the time that has passed allows for all that will be drawn."""
        if self._first is not None and self.spending.allows("samples", and_all=True):
            self._show_samples(trainer)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to collect answers."""
        self._collector = Collector()
        self._test_s = -time.perf_counter()

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what the network answered."""
        if isinstance(outputs, Tensor) and self._draws(trainer):
            self._collector.append(outputs, batch[1])

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Bring the answers of all ranks together."""
        self._answers = self._collector.gather() if self._draws(trainer) else None
        self._test_s += time.perf_counter()

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw what there is time for."""
        answers, self._answers = self._answers, None
        if not self._boards(trainer) or answers is None or not len(answers.labels):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        shows_images = data.input_shape[0] in (1, 3)
        if data.num_classes <= MOST_CLASSES:
            more_s = 5e-7 * data.num_classes**2
            self._try("confusion", lambda: self._show_confusion(trainer, answers), more_s)
        if shows_images and self.images and bool((answers.predictions != answers.labels).any()):
            self._try("mistakes", lambda: self._show_mistakes(trainer, answers))
        if self._first is not None and self.spending.allows("samples"):
            self._show_samples(trainer)
        self._try("classes", lambda: self._show_classes(trainer, answers))
        # The largest networks take seconds even for one image.
        each_s = self._test_s * trainer.world_size / len(answers.labels)
        self._try("graph", lambda: self._show_graph(trainer, pl_module), more_s=2 * each_s)
        shown = min(self.points, len(answers.labels))
        if shows_images and shown:
            self._try(
                "points", lambda: self._show_points(trainer, pl_module, answers, shown), more_s=shown * each_s
            )
        for line in self.spending.tell():
            log.info(line)

    def _draws(self, trainer: L.Trainer) -> bool:
        """The same on all ranks."""
        wanted = any(hasattr(logger, "log_picture") for logger in trainer.loggers)
        return wanted and self.spending.budget > 0 and hasattr(trainer.datamodule, "pixels")  # type: ignore[attr-defined]

    def _boards(self, trainer: L.Trainer) -> list[Any]:
        """The loggers that take pictures, on the first rank."""
        if not trainer.is_global_zero or not self._draws(trainer):
            return []
        return [logger for logger in trainer.loggers if hasattr(logger, "log_picture")]

    def _try(self, name: str, draw: Callable[[], None], more_s: float = 0.0) -> None:
        """Draw one thing if there is time. The run is done: what goes wrong here must not spoil it."""
        if not self.spending.allows(name, more_s):
            return
        with self.spending.on(name, more_s):
            try:
                draw()
            except Exception as error:
                log.warning("warning: TensorBoard lacks %s: %s", name, one_line(error))

    def _show_samples(self, trainer: L.Trainer) -> None:
        assert self._first is not None
        (images, targets), self._first = self._first, None
        self._try("samples", lambda: self._draw_samples(trainer, images, targets))

    def _draw_samples(self, trainer: L.Trainer, images: Tensor, targets: Tensor) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        pixels = to_uint8(images.float(), data.mean, data.std)
        captions = [_told(target, data.class_names) for target in targets]
        title = "Training images as the network sees them"
        self._show(trainer, "train/images", _sheet(pixels, captions, title))

    def _show_confusion(self, trainer: L.Trainer, answers: Answers) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        counts = answers.confusion(data.num_classes)
        right, images = int(counts.diag().sum()), len(answers.labels)
        title = f"Test: {right:,} of {images:,} right ({100 * right / images:.2f} %)"
        self._show(trainer, "test/confusion", confusion_matrix(counts, data.class_names, title=title))

    def _show_mistakes(self, trainer: L.Trainer, answers: Answers) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        worst = answers.worst(self.images)
        names = data.class_names
        captions = [
            f"{names[label]} → {names[answer]}\n{100 * sure:.0f} % sure"
            for label, answer, sure in zip(
                *(column[worst].tolist() for column in (answers.labels, answers.predictions)),
                answers.confidences[worst].tolist(),
                strict=True,
            )
        ]
        wrong = int((answers.predictions != answers.labels).sum())
        title = f"Worst of {wrong:,} mistakes in the test: true class → prediction"
        pixels = data.pixels("test", answers.places[worst])
        self._show(trainer, "test/mistakes", _sheet(pixels, captions, title))

    def _show_classes(self, trainer: L.Trainer, answers: Answers) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        text = as_markdown(answers.confusion(data.num_classes), data.class_names)
        for board in self._boards(trainer):
            board.log_markdown("test/classes", text, trainer.global_step)

    def _show_graph(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        images = torch.zeros(1, *data.input_shape, device=module.device)
        with _answering(trainer, module, images) as (network, run, taken):
            for board in self._boards(trainer):
                board.draw_graph(network, run, taken)

    def _show_points(
        self, trainer: L.Trainer, module: L.LightningModule, answers: Answers, count: int
    ) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        chosen = torch.linspace(0, len(answers.labels) - 1, count).long()
        pixels = data.pixels("test", answers.places[chosen])
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
        parts = []
        for part in pixels.split(data.eval_batch_size):
            images = ((part / 255 - mean) / std).to(module.device)
            with _answering(trainer, module, images) as (network, run, _):
                parts.append(last_features(network, run).cpu())
        labels, predictions = answers.labels[chosen].tolist(), answers.predictions[chosen].tolist()
        names = data.class_names
        rows = [
            (names[label], names[answer], "yes" if label == answer else "no")
            for label, answer in zip(labels, predictions, strict=True)
        ]
        points: np.ndarray[Any, Any] = torch.cat(parts).numpy()
        for board in self._boards(trainer):
            board.log_projection(
                "features of test images",
                points,
                ("class", "prediction", "right"),
                rows,
                _thumbnails(pixels),
            )

    def _show(self, trainer: L.Trainer, tag: str, picture: Any) -> None:
        for board in self._boards(trainer):
            board.log_picture(tag, picture, trainer.global_step)


@contextmanager
def _answering(
    trainer: L.Trainer, module: L.LightningModule, images: Tensor
) -> Iterator[tuple[torch.nn.Module, Callable[[], Tensor], Tensor]]:
    """The network, what has it answer to images in the run's precision and never compiled, and the images as
    it takes them.
    """
    network: Any = module.network
    taken = trainer.precision_plugin.convert_input(images)
    taken = taken.contiguous(memory_format=module.memory_format)
    was_training = network.training
    network.eval()
    try:
        with trainer.precision_plugin.forward_context():
            yield network, lambda: network._call_impl(taken), taken
    finally:
        network.train(was_training)


def _sheet(pixels: Any, captions: list[str], title: str) -> Any:
    """A sheet that is small enough for event files where the images are large."""
    large = max(pixels.shape[2:]) > LARGEST_TILE
    return contact_sheet(pixels, captions, title=title, tile=LARGEST_TILE if large else None)


def _thumbnails(pixels: Tensor) -> list[Any]:
    """Pictures of images (N, C, H, W) uint8, small enough for all of them together."""
    import PIL.Image

    from project.loggers.projection import LARGEST_SPRITE
    from project.pictures.sheet import as_rgb

    across = math.ceil(math.sqrt(len(pixels)))
    height, width = pixels.shape[2:]
    largest = min(THUMBNAIL, LARGEST_SPRITE // across)
    scale = min(1.0, largest / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pictures = [PIL.Image.fromarray(image) for image in as_rgb(pixels)]
    return pictures if scale == 1 else [picture.resize(size) for picture in pictures]


def _told(target: Tensor, class_names: list[str]) -> str:
    """What a training image is taken for: a class, or shares of classes after mixup and cutmix."""
    if target.ndim == 0:
        return class_names[int(target)]
    shares, classes = target.float().topk(min(2, len(target)))
    told = [
        f"{class_names[place]} {100 * share:.0f} %"
        for share, place in zip(shares.tolist(), classes.tolist(), strict=True)
        if share >= 0.005
    ]
    return "\n".join(told)
