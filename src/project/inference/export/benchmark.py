"""What a file's network does against the original: how far it is off, how often right, how fast."""

import statistics
import time
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from project.inference.export.calibration_data import Samples
from project.inference.export.formats import ExportError, Predictor
from project.inference.export.wrapper import Output
from project.modules.classifier import ImageClassifier
from project.modules.tta import mean_over_views

LEAST_ROUNDS, MOST_ROUNDS = 7, 200


class Agreement(NamedTuple):
    """A network's outputs against those of the original on the same images."""

    accuracy: float
    difference: float  # largest absolute one of any output
    scale: float  # largest absolute output of the original


class Timing(NamedTuple):
    """Milliseconds of a call."""

    median: float
    spread: float  # half the distance between the quartiles


def predict_all(predict: Predictor, samples: Samples) -> Tensor:
    """What a network puts out (n, K) for all images."""
    return torch.cat([predict(pixels) for pixels in samples.pixels()])


def original_outputs(module: ImageClassifier, samples: Samples, *, views: str, output: Output) -> Tensor:
    """What the run's network puts out (n, K): computed as the run's own test would, in single precision.

    Args:
        module: of the run, in evaluation mode.
        samples: images.
        views: see `Deployed`.
        output: likewise.
    """
    module = module.float().eval()
    with torch.no_grad():
        logits = torch.cat([mean_over_views(module, batch, views) for batch in samples.normalized()])
    return logits.softmax(dim=1) if output == "probabilities" else logits


class Reference(NamedTuple):
    """Outputs that others are compared with.

    Args:
        samples: images and labels.
        outputs: (n, K).
    """

    samples: Samples
    outputs: Tensor

    def compare(self, predict: Predictor) -> Agreement:
        """Have a network predict the same images.

        Raises:
            ExportError: it puts out something of another shape, or what is no number.
        """
        outputs = predict_all(predict, self.samples)
        if outputs.shape != self.outputs.shape:
            wanted, found = list(self.outputs.shape), list(outputs.shape)
            raise ExportError(f"the file's network puts out {found} where the original puts out {wanted}")
        if not outputs.isfinite().all():
            raise ExportError("the file's network puts out nan or inf; was the run's training sound?")
        return Agreement(
            accuracy=self.accuracy_of(outputs),
            difference=(outputs - self.outputs).abs().max().item(),
            scale=max(1.0, self.outputs.abs().max().item()),
        )

    def require_equal(self, predict: Predictor, tolerance: float) -> Agreement:
        """Compare, and refuse what differs.

        Args:
            predict: the file's network.
            tolerance: largest difference of an output in units of the largest output, or of 1 where all are
                smaller: what rounding does grows with the numbers.

        Raises:
            ExportError: it differs by more.
        """
        found = self.compare(predict)
        if found.difference > tolerance * found.scale:
            raise ExportError(
                f"the file's network differs from the original by {found.difference:.2g} (outputs are up to "
                f"{found.scale:.3g}, tolerance={tolerance:g} of that is allowed); it was not kept"
            )
        return found

    def accuracy_of(self, outputs: Tensor) -> float:
        """Share of the images that outputs (n, K) get right."""
        return (outputs.argmax(dim=1) == self.samples.labels).double().mean().item()


def time_calls(predictors: Mapping[str, Predictor], images: Tensor, seconds: float) -> dict[str, Timing]:
    """Time predictors in turns, so that whatever else the machine does slows all of them alike.

    Args:
        predictors: by name.
        images: (B, C, H, W) uint8.
        seconds: to be spent on each, about.
    """
    for predict in predictors.values():  # the first calls set things up
        predict(images)
        predict(images)
    spent: dict[str, list[float]] = {name: [] for name in predictors}
    until = time.perf_counter() + seconds * len(predictors)
    for number in range(MOST_ROUNDS):
        if number >= LEAST_ROUNDS and time.perf_counter() > until:
            break
        for name, predict in predictors.items():
            began = time.perf_counter()
            predict(images)
            spent[name].append(1e3 * (time.perf_counter() - began))
    return {name: _timing(times) for name, times in spent.items()}


def _timing(times: list[float]) -> Timing:
    low, median, high = statistics.quantiles(times, n=4)
    return Timing(median, (high - low) / 2)
