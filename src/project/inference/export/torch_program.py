"""`torch.export`: programs that PyTorch runs without the code that they were made from."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from project.errors import one_line
from project.inference.export.formats import Description, ExportError, Predictor, blank

LONGEST_REASON = 200


def capture(model: nn.Module, shape: tuple[int, int, int]) -> ExportedProgram:
    """Trace a network for batches of any size.

    Args:
        model: maps images (B, C, H, W) uint8 to logits; in evaluation mode.
        shape: (C, H, W) of an image.

    Raises:
        ExportError: it cannot be traced.
    """
    with quiet(), _plain_attention():
        try:
            return torch.export.export(model, (blank(shape),), dynamic_shapes=({0: Dim("batch")},))
        except Exception as error:  # tracing runs the network: it may raise anything
            raise ExportError(f"torch.export cannot trace this network: {shorten(error)}") from error


def write(model: nn.Module, file: Path, description: Description) -> None:
    """Write a network as a `.pt2` file; its extra files say what it is.

    Raises:
        ExportError: it cannot be traced or written.
    """
    save(capture(model, description.input_shape), file, description)


def save(program: ExportedProgram, file: Path, description: Description) -> None:
    """Write a traced network as a `.pt2` file; its extra files say what it is.

    Raises:
        ExportError: it cannot be written.
    """
    with quiet():
        try:
            torch.export.save(program, file, extra_files=description.entries())
        except OSError:
            raise
        except Exception as error:
            raise ExportError(f"torch.export cannot write this network: {shorten(error)}") from error


def read(file: Path) -> Predictor:
    """Load a file that `write` made."""
    with quiet():
        module = torch.export.load(file).module()

    def predict(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return module(images)

    return predict


def shorten(error: BaseException) -> str:
    """An error's kind and the beginning of its message."""
    reason = one_line(error)
    return f"{type(error).__name__}: {reason[:LONGEST_REASON]}{'…' if len(reason) > LONGEST_REASON else ''}"


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Trace attention as single operations, not as the one fused operation that no format knows."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Do something without what libraries warn and tell of their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
