"""What TensorBoard shows beside curves: pictures, tables, the network, what it sees in the images."""

import logging
import math
import time
from collections.abc import Callable
from typing import Annotated, Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from project.callbacks.figures import Drawings
from project.callbacks.predictions import Answers, Collector
from project.callbacks.spending import Spending
from project.errors import InputError, one_line
from project.runtime.bounds import Range

log = logging.getLogger(__name__)

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
machine takes longer for is learned from what was drawn before; the network's own time comes on top, and that
of the images, which are read again and made smaller.
"""
PIXEL_S = 1e-7
"""Seconds for each pixel of an image that is drawn."""


class Story(Callback):
    """Writes to loggers that take pictures: of the test its confusion matrix, the worst mistakes, a table of
    the classes and the network's features of some images; training images as they are augmented; the
    network's graph.

    All that takes at most `budget` of the run's time, or `least_s`; what would exceed it is left out, by
    the order of `COST_S`, and named in the log. A run that is not tested shows its training images alone.

    Args:
        budget: share of the run's time, 0 to 1; 1 draws all, 0 nothing.
        least_s: seconds that it may take however short the run is, see `keep_to_share`.
        images: most images on a sheet.
        points: most test images whose features are shown.

    Raises:
        InputError: a value is out of its range.
    """

    visits_chunks = True

    def __init__(
        self,
        budget: Annotated[float, Range(0, 1)] = 0.03,
        least_s: Annotated[float, Range(0)] = 0.6,
        images: Annotated[int, Range(0, 1000)] = 24,
        points: Annotated[int, Range(0, 10_000)] = 500,
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

    def keep_to_share(self) -> None:
        """Take no more than the share of the run's time, however short it is: where there are many runs."""
        self.spending.least_s = 0.0

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
        if self._first is not None and self.spending.allows("samples", self._samples_s(), and_all=True):
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
        self._answers = None
        if self._draws(trainer):
            try:
                self._answers = self._collector.gather()
            except Exception as error:
                log.warning("warning: TensorBoard lacks the test: %s", one_line(error))
        self._test_s += time.perf_counter()

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw what there is time for."""
        answers, self._answers = self._answers, None
        if not self._boards(trainer) or answers is None or not len(answers.labels):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        shows_images = data.input_shape[0] in (1, 3)
        drawings = self._drawings(trainer)
        if data.num_classes <= MOST_CLASSES:
            more_s = 5e-7 * data.num_classes**2
            self._try("confusion", lambda: drawings.confusion(answers), more_s)
        image_s = self._image_s(data, answers) if shows_images else 0.0
        mistakes = min(self.images, int((answers.predictions != answers.labels).sum()))
        if shows_images and mistakes:
            self._try("mistakes", lambda: drawings.mistakes(answers, mistakes), mistakes * image_s)
        if self._first is not None and self.spending.allows("samples", self._samples_s()):
            self._show_samples(trainer)
        self._try("classes", lambda: drawings.classes(answers))
        # The largest networks take seconds even for one image.
        each_s = self._test_s * trainer.world_size / len(answers.labels)
        self._try("graph", lambda: drawings.graph(trainer, pl_module), more_s=2 * each_s)
        shown = min(self.points, len(answers.labels))
        if shows_images and shown:
            more_s = shown * (each_s + image_s)
            self._try("points", lambda: drawings.points(trainer, pl_module, answers, shown), more_s)
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

    def _drawings(self, trainer: L.Trainer) -> Drawings:
        return Drawings(self._boards(trainer), trainer.datamodule, trainer.global_step)  # type: ignore[attr-defined]

    def _image_s(self, data: Any, answers: Answers) -> float:
        """Seconds that an image of the test takes to read and to draw. One that is not in memory is decoded:
        two are tried.
        """
        read_s = 0.0
        with self.spending.aside():
            for place in answers.places[:2]:  # the first time comes with imports
                began = time.perf_counter()
                try:
                    data.pixels("test", place[None])
                except Exception:  # what needs it says why it cannot be read
                    break
                read_s = time.perf_counter() - began
        return read_s + PIXEL_S * math.prod(data.input_shape[1:])

    def _samples_s(self) -> float:
        """Seconds that the size of the kept training images adds."""
        return PIXEL_S * self._first[0][:, 0].numel() if self._first is not None else 0.0

    def _show_samples(self, trainer: L.Trainer) -> None:
        assert self._first is not None
        more_s = self._samples_s()
        (images, targets), self._first = self._first, None
        self._try("samples", lambda: self._drawings(trainer).samples(images, targets), more_s)
