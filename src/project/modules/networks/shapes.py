"""Shape arithmetic shared by the networks."""

from collections.abc import Sequence

import torch
from torch import nn

from project.errors import InputError


def pair(key: str, values: Sequence[float]) -> None:
    """Refuse anything but two values.

    Raises:
        InputError: of another number.
    """
    if len(values) != 2:
        raise InputError(f"{key}={list(values)}: two values are needed, of the first and the second layer")


def flat_features(body: nn.Module, input_shape: Sequence[int]) -> int:
    """Number of features per image that `body` puts out, found by passing one blank image.

    Args:
        body: maps images (B, C, H, W) to any shape (B, ...).
        input_shape: (C, H, W) of one image.

    Raises:
        InputError: the image is too small for `body`.
    """
    try:
        with torch.no_grad():
            output = body.eval()(torch.zeros(1, *input_shape))
    except RuntimeError as error:
        raise InputError(
            f"data.input_shape={list(input_shape)}: too small for this network ({error}); "
            "use larger images (data.resize=32) or another model"
        ) from error
    body.train()
    return output.numel()
