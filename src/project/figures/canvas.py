"""What the pictures share: fonts, colours, text that fits."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import PIL.Image
    import PIL.ImageDraw

RGB = tuple[int, int, int]

PAPER: RGB = (255, 255, 255)
INK: RGB = (33, 37, 41)
PALE: RGB = (134, 142, 150)
LINE: RGB = (222, 226, 230)
BLUE: RGB = (8, 81, 156)
ORANGE: RGB = (217, 72, 1)
GREEN: RGB = (43, 138, 62)
RED: RGB = (201, 42, 42)


def new(width: int, height: int) -> tuple[PIL.Image.Image, PIL.ImageDraw.ImageDraw]:
    """A white picture of so many pixels, and what draws on it."""
    import PIL.Image
    import PIL.ImageDraw

    image = PIL.Image.new("RGB", (width, height), PAPER)
    return image, PIL.ImageDraw.Draw(image)


@cache
def font(size: int, *, bold: bool = False) -> Any:
    """A TrueType font of so many pixels.

    DejaVu Sans, which comes with matplotlib and knows arrows, accents, Greek and Cyrillic; it is found
    without importing matplotlib. Without it Pillow's own, which knows ASCII alone.
    """
    from PIL import ImageFont

    found = find_spec("matplotlib")
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    if found is not None and found.origin is not None:
        file = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / name
        if file.exists():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size=size)


def width_of(text: str, size: int, *, bold: bool = False) -> int:
    """Pixels that a line of text takes."""
    return round(font(size, bold=bold).getlength(text))


def fitting(text: str, size: int, width: int) -> str:
    """A line of text, cut off with an ellipsis where it is wider than so many pixels."""
    if width_of(text, size) <= width:
        return text
    for end in range(len(text) - 1, 0, -1):
        if width_of(short := f"{text[:end].rstrip()}…", size) <= width:
            return short
    return ""


def write_upwards(
    image: PIL.Image.Image, x: int, bottom: int, text: str, size: int, colour: RGB = INK
) -> None:
    """Write a line from bottom to top, centred on column `x`, beginning at row `bottom`."""
    import PIL.Image
    import PIL.ImageDraw

    height = round(size * 1.5)
    strip = PIL.Image.new("L", (max(1, width_of(text, size) + 2), height), 0)
    PIL.ImageDraw.Draw(strip).text((0, height // 2), text, font=font(size), fill=255, anchor="lm")
    strip = strip.rotate(90, expand=True)
    image.paste(PIL.Image.new("RGB", strip.size, colour), (x - height // 2, bottom - strip.height), strip)


def blend(shares: NDArray[Any], colour: RGB) -> NDArray[np.uint8]:
    """Shades (…, 3) from white, for 0, to a colour, for 1."""
    white, full = np.array(PAPER, float), np.array(colour, float)
    return np.rint(white + np.asarray(shares, float)[..., None] * (full - white)).astype(np.uint8)
