"""Preparation of a drawing as the handwritten digits of MNIST were prepared.

Source: LeCun, Cortes and Burges, The MNIST database of handwritten digits: "size normalized to fit in a 20x20
pixel box while preserving their aspect ratio", "centered in a 28x28 image by computing the center of mass".
"""

from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from project.datamodules.loading.image_decoder import decode_image

BOX_FRACTION = 20 / 28
"""Longest side of the ink, as a fraction of the image's side."""
BOX_FRACTIONS = {"Digits": 1.0}
"""The same for data sets that were prepared in another way, by the name of their class."""
INK_THRESHOLD = 0.25
"""Darkness that counts as ink, as a fraction of the darkest: paper has a texture."""
MIN_CONTRAST = 24
"""Least difference between ink and paper, of 255."""
MAX_SIDE = 512
"""Side to which a larger picture is reduced first [pixels]."""


class EmptyDrawingError(ValueError):
    """A picture of one color."""


def prepare_drawing(
    file: IO[bytes],
    shape: tuple[int, int, int],
    *,
    bright_ink: bool,
    box_fraction: float = BOX_FRACTION,
    white_level: float | None = None,
) -> Tensor:
    """Return a drawing as an image (1, H, W) uint8: centered, its size normalized, with smooth edges.

    Args:
        file: picture of ink on paper, or of chalk on a blackboard.
        shape: (C, H, W) of the network's input; C is 1.
        bright_ink: the network knows bright ink on a dark background, as in MNIST.
        box_fraction: longest side of the ink, as a fraction of the image's side.
        white_level: see `decode_image`.

    Raises:
        EmptyDrawingError: the picture shows nothing.
        DataError, InputError: those of `decode_image`.
    """
    _, height, width = shape
    with Image.open(file) as opened:
        scale = min(1.0, MAX_SIDE / max(opened.size))
        size = [max(1, round(side * scale)) for side in opened.size]
        if opened.getexif().get(0x0112, 1) >= 5:  # turned by a quarter when decoded
            size.reverse()
    file.seek(0)
    gray = decode_image(file, (1, size[1], size[0]), may_scale=True, white_level=white_level)[0]
    ink = _ink(gray.numpy().astype(np.float32))
    rows, columns = np.nonzero(ink > INK_THRESHOLD)
    ink = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    factor = min(height * box_fraction / ink.shape[0], width * box_fraction / ink.shape[1])
    high, wide = (max(1, round(side * factor)) for side in ink.shape)
    picture = Image.fromarray(np.rint(255 * ink).astype(np.uint8))
    scaled = np.asarray(picture.resize((wide, high), Image.Resampling.BILINEAR))
    scaled = np.minimum(scaled.astype(np.float32) * (255 / max(scaled.max(), 1)), 255)  # thin lines are faint
    total = scaled.sum()
    center_y = float((scaled.sum(axis=1) * np.arange(high)).sum() / total)
    center_x = float((scaled.sum(axis=0) * np.arange(wide)).sum() / total)
    top = min(max(round((height - 1) / 2 - center_y), 0), height - high)
    left = min(max(round((width - 1) / 2 - center_x), 0), width - wide)
    result = np.zeros((height, width), dtype=np.uint8)
    result[top : top + high, left : left + wide] = np.rint(scaled)
    return torch.from_numpy(result if bright_ink else 255 - result)[None]


def _ink(gray: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the difference from the background, the color of most of the border, scaled to [0, 1]."""
    border = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    difference = np.abs(gray - np.median(border))
    if (most := difference.max()) < MIN_CONTRAST:
        raise EmptyDrawingError("nothing is drawn")
    ink = difference / most
    ink[ink < INK_THRESHOLD] = 0
    return ink
