"""Images side by side, with captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from project.figures.canvas import INK, LINE, RGB, fitting, font, new, width_of

if TYPE_CHECKING:
    import PIL.Image

SMALLEST, LARGEST = 96, 224
"""Sides between which tiles are brought, pixels."""
GAP = 14
TEXT = 13


def contact_sheet(
    images: Any,
    captions: Sequence[str],
    *,
    columns: int = 8,
    tile: int | None = None,
    colours: Sequence[RGB] | None = None,
    title: str = "",
) -> PIL.Image.Image:
    """Draw images in rows, each with its caption below.

    Small images are enlarged by a whole factor, pixel by pixel; large ones are scaled down.

    Args:
        images: (N, C, H, W) uint8 with 1 or 3 channels.
        captions: N texts of a line or more; lines wider than a tile are cut off.
        columns: of a row.
        tile: width of a tile in pixels; null chooses one by the images' size.
        colours: N colours of the captions; null writes all in black.
        title: a line above; empty for none.

    Raises:
        ValueError: there are no images, or not of 1 or 3 channels.
    """
    import PIL.Image

    pixels = as_rgb(images)
    count, height, width = pixels.shape[:3]
    if not count:
        raise ValueError("no images to draw")
    factor = _factor(height, width, tile)
    if factor >= 1:
        pixels = pixels.repeat(int(factor), 1).repeat(int(factor), 2)
    shown = (max(1, round(width * factor)), max(1, round(height * factor)))
    column = max(shown[0], tile or SMALLEST)
    columns = min(columns, count)
    lines = max((caption.count("\n") + 1 for caption in captions if caption), default=0)
    row = shown[1] + (6 + lines * (TEXT + 4) if lines else 0)
    top = GAP + (32 if title else 0)
    rows = -(-count // columns)
    whole = max(GAP + columns * (column + GAP), width_of(title, 18, bold=True) + 2 * GAP)
    sheet, draw = new(whole, top + rows * (row + GAP))
    if title:
        draw.text((GAP, GAP), title, font=font(18, bold=True), fill=INK)
    for number in range(count):
        x = GAP + number % columns * (column + GAP) + (column - shown[0]) // 2
        y = top + number // columns * (row + GAP)
        picture = PIL.Image.fromarray(pixels[number])
        if factor < 1:
            picture = picture.resize(shown, PIL.Image.Resampling.LANCZOS)
        sheet.paste(picture, (x, y))
        draw.rectangle((x - 1, y - 1, x + shown[0], y + shown[1]), outline=LINE)
        ink = INK if colours is None else colours[number]
        for place, line in enumerate(captions[number].split("\n") if captions[number] else []):
            at = (x + shown[0] // 2, y + shown[1] + 6 + place * (TEXT + 4))
            draw.text(at, fitting(line, TEXT, column + 8), font=font(TEXT), fill=ink, anchor="ma")
    return sheet


def as_rgb(images: Any) -> NDArray[np.uint8]:
    """Images (N, H, W, 3) of (N, C, H, W) uint8 with 1 or 3 channels.

    Raises:
        ValueError: they have another number of channels.
    """
    pixels: NDArray[np.uint8] = np.asarray(images)
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise ValueError(f"images of shape {pixels.shape}: (N, 1, H, W) or (N, 3, H, W) is needed")
    pixels = pixels.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels if pixels.shape[-1] == 3 else pixels.repeat(3, -1))


def to_uint8(images: Any, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.uint8]:
    """Undo the normalization of images.

    Args:
        images: (N, C, H, W) float.
        mean: of each channel, on the scale [0, 1].
        std: likewise.

    Returns:
        (N, C, H, W) uint8; what exceeds the range is cut off.
    """
    scale, shift = (np.asarray(values, np.float32).reshape(-1, 1, 1) for values in (std, mean))
    pixels = (np.asarray(images, np.float32) * scale + shift) * 255
    return np.rint(pixels.clip(0, 255)).astype(np.uint8)


def _factor(height: int, width: int, tile: int | None) -> float:
    """By which images are enlarged, a whole number, or made smaller, below 1."""
    longest = max(height, width)
    if tile is not None:
        return max(1, tile // width) if width <= tile else tile / width
    if longest > LARGEST:
        return LARGEST / longest
    return max(1, SMALLEST // longest) if longest < SMALLEST else 1
