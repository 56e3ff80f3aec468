"""Comparison of exported files with the original network: outputs and accuracy on real images, time."""

import statistics
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from project.datamodules.base import Split
from project.datamodules.image_base import ImageDataModule
from project.datamodules.loading.loader import normalization
from project.inference.export.options import OutputType
from project.inference.export.wrapper import ExportError, PredictFunction
from project.modules.classifier import ImageClassifier
from project.modules.tta import tta_logits

MIN_ROUNDS, MAX_ROUNDS = 7, 200


class ImageSample:
    """Evenly spaced images of a split, both as stored and normalized, without augmentation.

    Args:
        datamodule: the data set.
        split: `train` or `test`.
        limit: maximum number of images (None: all).
    """

    def __init__(self, datamodule: ImageDataModule, split: Split, limit: int | None = None) -> None:
        datamodule.prepare_data()
        datamodule.setup("test" if split == "test" else "validate")
        self.images, rows = datamodule.subset(split)
        size = len(rows) if limit is None else min(limit, len(rows))
        self.rows = rows[torch.linspace(0, len(rows) - 1, size).round().long()]
        self.labels = self.images.labels[self.rows]  # n
        self.batch_size = datamodule.eval_batch_size
        assert datamodule.mean is not None
        assert datamodule.std is not None
        self.shift, self.scale = normalization(datamodule.mean, datamodule.std)

    def __len__(self) -> int:
        return len(self.rows)

    def pixels(self) -> Iterator[Tensor]:
        """Yield batches (B, C, H, W) uint8."""
        for rows in self.rows.split(self.batch_size):
            yield self.images.sample(rows)

    def normalized(self) -> Iterator[Tensor]:
        """Yield the same batches normalized, float32."""
        for pixels in self.pixels():
            yield (pixels.float() - self.shift) * self.scale


class Agreement(NamedTuple):
    """Agreement of a network's outputs with those of the original network on the same images."""

    accuracy: float
    difference: float  # largest absolute difference of an output
    scale: float  # largest absolute output of the original, at least 1


class Timing(NamedTuple):
    """Duration of a call [ms]."""

    median: float
    spread: float  # half the interquartile range


@torch.no_grad()
def predict_all(predict: PredictFunction, images: ImageSample) -> Tensor:
    """Return the outputs (n, K) for all images."""
    return torch.cat([predict(pixels) for pixels in images.pixels()])


@torch.no_grad()
def original_outputs(
    module: ImageClassifier, images: ImageSample, *, tta: str, output_type: OutputType
) -> Tensor:
    """Return the outputs (n, K) of the run's network, computed as in its test, in float32."""
    module = module.float().eval()
    logits = torch.cat([tta_logits(module, batch, tta) for batch in images.normalized()])
    return logits.softmax(dim=1) if output_type == "probabilities" else logits


class Reference(NamedTuple):
    """Images with their expected outputs."""

    images: ImageSample
    outputs: Tensor

    def compare(self, predict: PredictFunction) -> Agreement:
        """Compare a network's outputs with the expected ones."""
        outputs = predict_all(predict, self.images)
        if outputs.shape != self.outputs.shape:
            expected, found = list(self.outputs.shape), list(outputs.shape)
            raise ExportError(f"the file's outputs have shape {found} (expected {expected})")
        if not outputs.isfinite().all():
            raise ExportError("the file's network outputs NaN or infinity; check the run's training")
        return Agreement(
            accuracy=self.accuracy_of(outputs),
            difference=(outputs - self.outputs).abs().max().item(),
            scale=max(1.0, self.outputs.abs().max().item()),
        )

    def require_equal(self, predict: PredictFunction, tolerance: float) -> Agreement:
        """Compare a network's outputs with the expected ones; refuse a difference above the tolerance."""
        found = self.compare(predict)
        if found.difference > tolerance * found.scale:
            raise ExportError(
                f"the file's network differs from the original by {found.difference:.2g} (outputs are up to "
                f"{found.scale:.3g}, tolerance={tolerance:g} of that is allowed); the file was not kept"
            )
        return found

    def accuracy_of(self, outputs: Tensor) -> float:
        """Return the accuracy of outputs (n, K)."""
        return (outputs.argmax(dim=1) == self.images.labels).double().mean().item()


@torch.no_grad()
def time_calls(
    predictors: Mapping[str, PredictFunction], images: Tensor, seconds: float
) -> dict[str, Timing]:
    """Time predictors in turns, so that other load on the machine affects all of them equally."""
    for predict in predictors.values():  # warm up
        predict(images)
        predict(images)
    times: dict[str, list[float]] = {name: [] for name in predictors}
    end = time.perf_counter() + seconds * len(predictors)
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and time.perf_counter() > end:
            break
        for name, predict in predictors.items():
            start = time.perf_counter()
            predict(images)
            times[name].append(1e3 * (time.perf_counter() - start))
    quartiles = {name: statistics.quantiles(values, n=4) for name, values in times.items()}
    return {name: Timing(median, (high - low) / 2) for name, (low, median, high) in quartiles.items()}
