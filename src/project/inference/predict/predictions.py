"""Predictions of a trained network for image files; see `examples/use_a_run.py`."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import NamedTuple, TypeVar

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from project.datamodules.loading.image_decoder import OutOfRangeError, decode_image
from project.datamodules.loading.loader import normalization
from project.datamodules.loading.prefetch import prefetch
from project.datamodules.storage.image_files import NOT_AN_IMAGE, SkippedFile
from project.errors import NonFiniteError, one_line
from project.inference.load_run import TrainedRun
from project.inference.options import require_accelerator
from project.modules.tta import tta_logits
from project.runtime.devices import available_cpus
from project.runtime.text import printable

log = logging.getLogger(__name__)

FILES_PER_TASK = 16
"""Files per decoding task; handing over single files would take as long as decoding them."""
MAX_THREADS = 16

Item = TypeVar("Item")


@dataclass(frozen=True)
class Prediction:
    """Prediction for one image.

    Args:
        file: path of the image.
        classes: names of the most probable classes, the most probable first.
        probabilities: softmax probabilities of these classes.
        image: the network's input (C, H, W) uint8, before normalization.
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
        """Probability of the most probable class."""
        return self.probabilities[0]


class Predictor:
    """A trained network on a device, for images that are not normalized.

    Normalization, precision and test-time augmentation are those of the run's test.

    Args:
        trained: the run, whose network is moved to the device.
        tta: test-time augmentation (see `modules.tta`) [that of the run's test].
        accelerator: see `inference.options.Accelerator`.

    Raises:
        InputError: this machine has no such accelerator.
    """

    def __init__(self, trained: TrainedRun, tta: str | None = None, accelerator: str = "auto") -> None:
        require_accelerator(accelerator)
        self.trained = trained
        self.tta = trained.choose_tta(tta)
        trainer = trained.trainer(accelerator=accelerator)
        self.device = trainer.strategy.root_device
        self.precision = trainer.precision_plugin
        self.module = self.precision.convert_module(trained.module.eval()).to(self.device)
        self.shift, self.scale = normalization(trained.mean, trained.std, self.device)

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """Return class probabilities (B, K) float32 on the CPU for images (B, C, H, W) uint8."""
        pixels = images.to(self.device, non_blocking=True).float().sub_(self.shift).mul_(self.scale)
        with self.precision.forward_context():
            logits = tta_logits(self.module, self.precision.convert_input(pixels), self.tta)
        probabilities = logits.float().softmax(-1).cpu()
        if not probabilities.isfinite().all():
            raise NonFiniteError(
                f"{self.trained.checkpoint}: the network's logits are NaN or infinite; try other weights"
            )
        return probabilities


def log_skipped(skipped: SkippedFile) -> None:
    """Log that a file is skipped."""
    log.warning("skipped: %s: %s", printable(skipped.file), skipped.reason)


def predict(
    trained: TrainedRun,
    files: Iterable[str],
    *,
    top_k: int = 3,
    batch_size: int = 64,
    tta: str | None = None,
    accelerator: str = "auto",
    num_threads: int | None = None,
    on_skip: Callable[[SkippedFile], object] = log_skipped,
) -> Iterator[Prediction]:
    """Predict the classes of image files in order, with only a few batches in memory.

    Args:
        trained: the run.
        files: paths of images of any size and mode; images are scaled as in training.
        top_k: number of classes in a prediction.
        batch_size: images in a forward pass.
        tta: see `Predictor`.
        accelerator: see `Predictor`.
        num_threads: decoding threads [one per available CPU].
        on_skip: function called with each file that cannot be decoded.

    Raises:
        InputError: this machine has no such accelerator.
        NonFiniteError: while predicting, if a logit is NaN or infinite.
    """
    predictor = Predictor(trained, tta, accelerator)
    decoded = decode_files(
        files,
        trained.input_shape,
        ahead_by=2 * batch_size,
        num_threads=num_threads,
        white_level=trained.config["data"].get("white_level"),
    )
    return _predict_batches(predictor, decoded, on_skip, top_k, batch_size)


class DecodedImage(NamedTuple):
    """A file and its image (C, H, W) uint8."""

    file: str
    image: Tensor


def decode_files(
    files: Iterable[str],
    shape: tuple[int, int, int],
    *,
    ahead_by: int,
    num_threads: int | None = None,
    white_level: float | None = None,
) -> Iterator[DecodedImage | SkippedFile]:
    """Decode files in threads; yield images in order, with a reason for each file that cannot be decoded."""
    decode = partial(_decode_chunk, shape, white_level)
    num_threads = num_threads or min(available_cpus(), MAX_THREADS)
    depth = -(-ahead_by // FILES_PER_TASK) + num_threads
    for results in prefetch(decode, _chunks(files, FILES_PER_TASK), depth=depth, threads=num_threads):
        yield from results


def _decode_chunk(
    shape: tuple[int, int, int], white_level: float | None, files: list[str]
) -> list[DecodedImage | SkippedFile]:
    results: list[DecodedImage | SkippedFile] = []
    for file in files:
        try:
            image = decode_image(file, shape, may_scale=True, white_level=white_level)
            results.append(DecodedImage(file, image))
        except Exception as error:  # decoders raise anything on damaged files
            results.append(SkippedFile(file, _reason(file, error.__cause__ or error)))
    return results


def _reason(file: str, error: BaseException) -> str:
    """Return a short reason why a file cannot be decoded."""
    try:
        if os.path.getsize(file) == 0:  # noqa: PTH202
            return "empty"
    except OSError as missing:
        return missing.strerror or one_line(missing)
    return decoding_problem(error)


def decoding_problem(error: BaseException) -> str:
    """Return a short reason for an error of `decode_image` or its cause."""
    if isinstance(error, OutOfRangeError):
        return one_line(error)
    if isinstance(error, UnidentifiedImageError):
        return NOT_AN_IMAGE
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"too large ({one_line(error)})"
    if isinstance(error, OSError) and "Ghostscript" in str(error):
        return "PostScript, which is a program and is not executed"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"damaged ({one_line(error)})"


def _predict_batches(
    predictor: Predictor,
    decoded: Iterator[DecodedImage | SkippedFile],
    on_skip: Callable[[SkippedFile], object],
    top_k: int,
    batch_size: int,
) -> Iterator[Prediction]:
    def without_skipped() -> Iterator[DecodedImage]:
        for entry in decoded:
            if isinstance(entry, SkippedFile):
                on_skip(entry)
            else:
                yield entry

    names = predictor.trained.class_names
    for batch in _chunks(without_skipped(), batch_size):
        images = torch.stack([entry.image for entry in batch])  # B, C, H, W
        best = predictor.probabilities(images).topk(min(top_k, len(names)))
        rows = zip(batch, best.indices.tolist(), best.values.tolist(), images, strict=True)
        for entry, labels, probabilities, image in rows:
            yield Prediction(entry.file, tuple(names[label] for label in labels), tuple(probabilities), image)


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk
