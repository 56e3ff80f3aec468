"""Parts that all export formats share: metadata, errors, and silence of the libraries."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from project.errors import summarize

Predictor = Callable[[Tensor], Tensor]
"""Function from images (B, C, H, W) uint8 to outputs (B, K) float32."""
INPUT = "images"


class ExportError(RuntimeError):
    """A network cannot be exported, or its file computes something else."""

    exit_code = 1


@dataclass(frozen=True)
class Description:
    """Metadata of an exported file.

    Args:
        class_names: names of the outputs, in their order.
        input_shape: shape (C, H, W) of an image.
        output: `logits` or `probabilities`; name of the output.
        mean: mean of each channel in [0, 1]; normalization happens inside.
        std: standard deviation of each channel in [0, 1].
        tta: test-time augmentation inside.
        variant: `float32`, or the way in which the network was made smaller.
        run: name of the run's folder.
        checkpoint: name of the checkpoint file.
    """

    class_names: list[str]
    input_shape: tuple[int, int, int]
    output: str
    mean: list[float]
    std: list[float]
    tta: str
    variant: str
    run: str
    checkpoint: str

    def entries(self) -> dict[str, str]:
        """Return the metadata as strings, lists and numbers as JSON."""
        facts: dict[str, Any] = {"input": "uint8 images (batch, channels, height, width), 0 to 255"}
        facts |= asdict(self) | {"torch": torch.__version__}
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}


def blank_images(shape: tuple[int, int, int], batch: int = 2) -> Tensor:
    """Return black images (batch, C, H, W) to trace a network with: files may store the example input."""
    return torch.zeros(batch, *shape, dtype=torch.uint8)


def describe_error(error: BaseException) -> str:
    """Return an error's class and the beginning of its message."""
    return f"{type(error).__name__}: {summarize(error)}"


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the warnings and log messages of libraries."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
