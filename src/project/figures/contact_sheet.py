"""Contact sheets: grids of images with captions, drawn with Pillow."""

from collections.abc import Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from project.runtime.text import mistake_text, percent, printable

if TYPE_CHECKING:
    import PIL.Image

RGB = tuple[int, int, int]
PAPER: RGB = (255, 255, 255)
INK: RGB = (33, 37, 41)
RULE: RGB = (222, 226, 230)
MIN_TILE, MAX_TILE = 96, 224
"""Limits of the longer side of drawn images, pixels."""
GAP = 14
TEXT_SIZE, TITLE_SIZE = 13, 18


def contact_sheet(
    images: Any,
    captions: Sequence[str],
    *,
    columns: int = 8,
    tile: int | None = None,
    title: str = "",
) -> "PIL.Image.Image":
    """Draw images in a grid, each with a caption below.

    Small images are enlarged by an integer factor without interpolation; large ones are scaled down.

    Args:
        images: (N, C, H, W) uint8 with 1 or 3 channels.
        captions: N strings of one or more lines; lines wider than a tile are shortened.
        columns: images per row (default 8).
        tile: width of a drawn image, pixels (default None: by the size of the images).
        title: title above the grid (default none).

    Raises:
        ValueError: there are no images, or they do not have 1 or 3 channels.
    """
    import PIL.Image
    import PIL.ImageDraw

    pixels = as_rgb(images)
    count, height, width = pixels.shape[:3]
    if not count:
        raise ValueError("images of shape (0, …): nothing to draw; give at least one image")
    factor = _scale_factor(height, width, tile)
    resampling = PIL.Image.Resampling.NEAREST if factor >= 1 else PIL.Image.Resampling.LANCZOS
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    column = max(size[0], tile or MIN_TILE)
    columns = min(columns, count)
    num_lines = max((caption.count("\n") + 1 for caption in captions if caption), default=0)
    row = size[1] + (6 + num_lines * (TEXT_SIZE + 4) if num_lines else 0)
    top = GAP + (32 if title else 0)
    sheet_width = max(GAP + columns * (column + GAP), text_width(title, TITLE_SIZE, bold=True) + 2 * GAP)
    sheet = PIL.Image.new("RGB", (sheet_width, top + -(-count // columns) * (row + GAP)), PAPER)
    draw = PIL.ImageDraw.Draw(sheet)
    if title:
        draw.text((GAP, GAP), title, font=font(TITLE_SIZE, bold=True), fill=INK)
    for number in range(count):
        x = GAP + number % columns * (column + GAP) + (column - size[0]) // 2
        y = top + number // columns * (row + GAP)
        sheet.paste(PIL.Image.fromarray(pixels[number]).resize(size, resampling), (x, y))
        draw.rectangle((x - 1, y - 1, x + size[0], y + size[1]), outline=RULE)
        for place, line in enumerate(captions[number].split("\n") if captions[number] else []):
            at = (x + size[0] // 2, y + size[1] + 6 + place * (TEXT_SIZE + 4))
            fitted = fit_text(line, TEXT_SIZE, column + 8)
            draw.text(at, fitted, font=font(TEXT_SIZE), fill=INK, anchor="ma")
    return sheet


def mistake_caption(label: str, prediction: str, probability: float, *, width: int, source: str = "") -> str:
    """Return the caption of a mistake: `label → prediction (97 %)` and, below, its file or index.

    The text takes two lines if it is wider than a tile. Names are shortened then; the arrow and the number
    never are.

    Args:
        label: true class.
        prediction: predicted class.
        probability: probability of the prediction.
        width: width of a tile, pixels.
        source: file, of which the end is kept, or another name [none].
    """
    lines = [mistake_text(label, prediction, probability)]
    if text_width(lines[0], TEXT_SIZE) > width:
        number = f" ({percent(probability)})"
        first, second = (width - text_width(part, TEXT_SIZE) for part in (" →", number))
        lines = [fit_text(label, TEXT_SIZE, first) + " →", fit_text(prediction, TEXT_SIZE, second) + number]
    if source:
        ends = (f"…{source[start:]}" for start in range(1, len(source)))
        fitting = (line for line in chain([source], ends) if text_width(line, TEXT_SIZE) <= width)
        lines.append(next(fitting, ""))
    return "\n".join(lines)


def mistake_captions(
    mistakes: Iterable[tuple[int, int, int, float]],
    names: Sequence[str],
    files: Sequence[str] | None,
    *,
    width: int,
) -> list[str]:
    """Return the captions of mistakes (see `mistake_caption`), each with its file or index.

    Args:
        mistakes: index, label, prediction and its probability of each.
        names: class names.
        files: files of the split by index; None if it has none.
        width: width of a tile, pixels.
    """
    return [
        mistake_caption(
            names[label],
            names[prediction],
            probability,
            width=width,
            source=f"no. {index}" if files is None else printable(files[index]),
        )
        for index, label, prediction, probability in mistakes
    ]


def _scale_factor(height: int, width: int, tile: int | None) -> float:
    """Return the scale factor of images: an integer to enlarge, or a fraction below 1 to scale down."""
    longest = max(height, width)
    if tile is not None:
        return max(1, tile // width) if width <= tile else tile / width
    return MAX_TILE / longest if longest > MAX_TILE else max(1, MIN_TILE // longest)


def as_rgb(images: Any) -> NDArray[np.uint8]:
    """Convert images (N, C, H, W) uint8 with 1 or 3 channels to RGB (N, H, W, 3)."""
    pixels: NDArray[np.uint8] = np.asarray(images)
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise ValueError(f"images of shape {pixels.shape}: expected (N, 1, H, W) or (N, 3, H, W)")
    pixels = pixels.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels if pixels.shape[-1] == 3 else pixels.repeat(3, -1))


def to_uint8(images: Any, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.uint8]:
    """Undo the normalization of images (N, C, H, W); return uint8 of the same shape.

    `mean` and `std` hold one value per channel, on the scale [0, 1].
    """
    scale, shift = (np.asarray(values, np.float32).reshape(-1, 1, 1) for values in (std, mean))
    pixels = (np.asarray(images, np.float32) * scale + shift) * 255
    return np.rint(pixels.clip(0, 255)).astype(np.uint8)


@cache
def font(size: float, *, bold: bool = False) -> Any:
    """Load DejaVu Sans from matplotlib: Pillow's font lacks accents, Greek and Cyrillic."""
    from PIL import ImageFont

    found = find_spec("matplotlib")  # importing matplotlib would take 0.2 s
    assert found is not None
    assert found.origin is not None
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / name), size)


def text_width(text: str, size: int, *, bold: bool = False) -> int:
    """Return the width of a line of text, pixels."""
    return round(font(size, bold=bold).getlength(text))


def fit_text(text: str, size: int, width: int) -> str:
    """Shorten a line of text with an ellipsis if it is wider than `width` pixels."""
    shorter = (f"{text[:end].rstrip()}…" for end in range(len(text) - 1, 0, -1))
    return next((line for line in chain([text], shorter) if text_width(line, size) <= width), "")
