"""Sheets of explained images: image, map, overlay and nearest training images, drawn with Pillow."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from project.figures.contact_sheet import (
    GAP,
    INK,
    PAPER,
    RULE,
    TEXT_SIZE,
    TITLE_SIZE,
    as_rgb,
    fit_text,
    font,
    text_width,
)

if TYPE_CHECKING:
    import PIL.Image

TILE = 112
"""Longer side of a drawn image, pixels."""
LINE = TEXT_SIZE + 5
WRONG = (176, 32, 32)
QUIET = (90, 98, 104)
BAR = (120, 10)
"""Size of the color scale, pixels."""


class Tile(NamedTuple):
    """Image (C, H, W) uint8 with a caption of one or more lines."""

    pixels: Any
    caption: str


@dataclass(frozen=True)
class Explained:
    """One row of a sheet.

    Args:
        image: (C, H, W) uint8.
        map: (H, W) in [0, 1].
        caption: lines below image, map and overlay.
        neighbors: nearest training images.
        is_wrong: the prediction is wrong, which the color of the caption shows.
    """

    image: Any
    map: Any
    caption: Sequence[str]
    neighbors: Sequence[Tile] = field(default_factory=tuple)
    is_wrong: bool = False


def explanation_sheet(rows: Sequence[Explained], *, title: str, meaning: str) -> "PIL.Image.Image":
    """Draw explained images, one below the other.

    Args:
        rows: the images, all of one size.
        title: title of the sheet.
        meaning: what a bright place of a map means.

    Raises:
        ValueError: there are no rows.
    """
    import PIL.Image
    import PIL.ImageDraw

    if not rows:
        raise ValueError("no explained images: nothing to draw; give at least one")
    height, width = np.shape(rows[0].map)
    scale = TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    step = max(size[0], 72) + GAP
    most = max(len(row.neighbors) for row in rows)
    lines = max(len(row.caption) for row in rows)
    row_height = size[1] + 4 + lines * LINE + GAP
    top = GAP + 30 + LINE + 26
    left_width = 3 * step - GAP
    sheet_width = 2 * GAP + left_width + (GAP + most * step if most else 0)
    needed = 2 * GAP + text_width(meaning, TEXT_SIZE) + BAR[0] + 130
    sheet_width = max(sheet_width, needed, text_width(title, TITLE_SIZE, bold=True) + 2 * GAP)
    sheet = PIL.Image.new("RGB", (sheet_width, top + len(rows) * row_height), PAPER)
    draw = PIL.ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, font=font(TITLE_SIZE, bold=True), fill=INK)
    _draw_scale(sheet, draw, GAP, GAP + 32, meaning)

    def paste(pixels: NDArray[np.uint8], x: int, y: int) -> None:
        is_enlarged = scale >= 1
        resampling = PIL.Image.Resampling.NEAREST if is_enlarged else PIL.Image.Resampling.LANCZOS
        sheet.paste(PIL.Image.fromarray(pixels).resize(size, resampling), (x, y))
        draw.rectangle((x - 1, y - 1, x + size[0], y + size[1]), outline=RULE)

    headings = ["image", "map", "overlay", *(["nearest training images"] if most else [])]
    starts = [GAP + step * place for place in range(3)] + [2 * GAP + 3 * step]
    for text, x in zip(headings, starts, strict=False):
        draw.text((x, top - 21), text, font=font(TEXT_SIZE), fill=QUIET)
    for number, row in enumerate(rows):
        y = top + number * row_height
        image = _rgb(row.image)
        for x, pixels in zip(starts, (image, heat(row.map), overlay(image, row.map)), strict=False):
            paste(pixels, x, y)
        for place, line in enumerate(row.caption):
            color = QUIET if place else WRONG if row.is_wrong else INK
            at = (GAP, y + size[1] + 4 + place * LINE)
            draw.text(at, fit_text(line, TEXT_SIZE, left_width), font=font(TEXT_SIZE), fill=color)
        for place, tile in enumerate(row.neighbors):
            x = starts[3] + place * step
            paste(_rgb(tile.pixels), x, y)
            for below, line in enumerate(tile.caption.split("\n")):
                at = (x, y + size[1] + 4 + below * LINE)
                fitted = fit_text(line, TEXT_SIZE, step - 4)
                draw.text(at, fitted, font=font(TEXT_SIZE), fill=QUIET if below else INK)
    return sheet


def _draw_scale(sheet: Any, draw: Any, x: int, y: int, meaning: str) -> None:
    """Draw the color scale of the maps, and its meaning."""
    import PIL.Image

    bar = heat(np.tile(np.linspace(0, 1, BAR[0]), (BAR[1], 1)))
    draw.text((x, y), "none", font=font(TEXT_SIZE), fill=QUIET)
    x += text_width("none", TEXT_SIZE) + 6
    sheet.paste(PIL.Image.fromarray(bar), (x, y + 4))
    draw.text((x + BAR[0] + 6, y), f"most;  {meaning}", font=font(TEXT_SIZE), fill=QUIET)


def heat(values: Any) -> NDArray[np.uint8]:
    """Color a map (H, W) in [0, 1]; return RGB (H, W, 3)."""
    from matplotlib import colormaps

    colored: NDArray[np.uint8] = colormaps["inferno"](np.asarray(values, np.float32), bytes=True)[..., :3]
    return np.ascontiguousarray(colored)


def overlay(image: NDArray[np.uint8], values: Any) -> NDArray[np.uint8]:
    """Color the places of an image (H, W, 3) where the map is bright; elsewhere the image is gray."""
    strength = 0.75 * np.asarray(values, np.float32)[..., None]
    gray = image.astype(np.float32) @ np.asarray([0.299, 0.587, 0.114], np.float32)
    mixed = (1 - strength) * gray[..., None] + strength * heat(values)
    return np.rint(mixed.clip(0, 255)).astype(np.uint8)


def _rgb(image: Any) -> NDArray[np.uint8]:
    """Convert an image (C, H, W) to RGB (H, W, 3); the mean of channels other than 1 or 3."""
    pixels = np.asarray(image)
    if pixels.shape[0] not in (1, 3):
        pixels = np.rint(pixels.mean(0, keepdims=True)).astype(np.uint8)
    return as_rgb(pixels[None])[0]
