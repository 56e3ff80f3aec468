"""Image files through a trained network.

Example::

    from project.inference.predict.predictions import predict
    from project.inference.load_run import load
    from project.runs.find import find_trained

    trained = load(find_trained("last"))
    for prediction in predict(trained, ["1.jpg", "2.jpg"]):
        print(prediction.file, prediction.class_name, prediction.probability)
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from project.config.choices import require_accelerator
from project.datamodules.storage.image_files import PassedOver
from project.errors import NonFiniteError
from project.inference.load_run import Trained
from project.inference.predict.decoding import Decoded, chunks, decode_files
from project.modules.tta import mean_over_views
from project.runtime.text import shown

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """What a network takes an image for.

    Args:
        file: its path.
        classes: names of the most probable classes, most probable first.
        probabilities: of these, by softmax.
        image: (C, H, W) uint8, as the network saw it before normalization.
    """

    file: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    image: Tensor = field(repr=False, compare=False)

    @property
    def class_name(self) -> str:
        """The most probable class."""
        return self.classes[0]

    @property
    def probability(self) -> float:
        """Of that class."""
        return self.probabilities[0]


class Predictor:
    """A trained network on a device, that takes images as they are in files.

    It computes as the run's test did: normalized by the same statistics, in the same precision.

    Args:
        trained: the run; its network moves to the device.
        views: changed copies of each image whose logits are averaged (see `modules.views`); None takes those
            of the run's test.
        accelerator: see `choices.Accelerator`.

    Raises:
        InputError: there is no such accelerator.
    """

    def __init__(self, trained: Trained, views: str | None = None, accelerator: str = "auto") -> None:
        require_accelerator(accelerator)
        self.trained = trained
        self.views = trained.module.test_views if views is None else views
        trainer = trained.trainer(accelerator=accelerator)
        self.device = trainer.strategy.root_device
        self.precision = trainer.precision_plugin
        self.module = self.precision.convert_module(trained.module.eval()).to(self.device)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (trained.mean, trained.std))
        self.shift = (255 * mean).to(self.device)  # C, 1, 1; as `ImageLoader` has them
        self.scale = (1 / (255 * std)).to(self.device)

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """Of each class, (B, K) float32 on the CPU, for images (B, C, H, W) uint8.

        Raises:
            NonFiniteError: the network's logits are no numbers.
        """
        pixels = images.to(self.device, non_blocking=True).float().sub_(self.shift).mul_(self.scale)
        with self.precision.forward_context():
            logits = mean_over_views(self.module, self.precision.convert_input(pixels), self.views)
        probabilities = logits.float().softmax(-1).cpu()
        if not probabilities.isfinite().all():
            raise NonFiniteError(
                f"{self.trained.checkpoint}: this network's logits are nan or inf; try other weights"
            )
        return probabilities


def tell(passed_over: PassedOver) -> None:
    """Log that a file is passed over."""
    log.warning("passed over: %s: %s", shown(passed_over.file), passed_over.reason)


def predict(
    trained: Trained,
    files: Iterable[str],
    *,
    top: int = 3,
    batch_size: int = 64,
    views: str | None = None,
    accelerator: str = "auto",
    threads: int | None = None,
    pass_over: Callable[[PassedOver], object] = tell,
) -> Iterator[Prediction]:
    """Predict the class of image files, in their order; as many are in memory as a few batches hold.

    Args:
        trained: the run.
        files: paths of images of any size and mode; they are brought to what the network was trained with.
        top: how many classes a prediction names.
        batch_size: images that go through the network together.
        views: see `Predictor`.
        accelerator: see `Predictor`.
        threads: that decode; None takes one for each CPU that this process may use.
        pass_over: is called with each file that cannot be read.

    Raises:
        InputError: there is no such accelerator.
        NonFiniteError: while predicting, if the network gives no numbers.
    """
    predictor = Predictor(trained, views, accelerator)
    top = min(top, len(trained.class_names))
    decoded = decode_files(
        files,
        trained.input_shape,
        ahead_by=2 * batch_size,
        threads=threads,
        white_level=trained.config["data"].get("white_level"),
    )
    return _predictions(predictor, _readable(decoded, pass_over), top, batch_size)


def _readable(
    decoded: Iterator[Decoded | PassedOver], pass_over: Callable[[PassedOver], object]
) -> Iterator[Decoded]:
    for entry in decoded:
        if isinstance(entry, PassedOver):
            pass_over(entry)
        else:
            yield entry


def _predictions(
    predictor: Predictor, decoded: Iterator[Decoded], top: int, batch_size: int
) -> Iterator[Prediction]:
    names = predictor.trained.class_names
    for batch in chunks(decoded, batch_size):
        images = torch.stack([entry.image for entry in batch])  # B, C, H, W
        best = predictor.probabilities(images).topk(top)
        rows = zip(batch, best.indices.tolist(), best.values.tolist(), images, strict=True)
        for entry, labels, values, image in rows:
            yield Prediction(entry.file, tuple(names[label] for label in labels), tuple(values), image)
