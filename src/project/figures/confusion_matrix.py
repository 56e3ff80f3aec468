"""Which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from project.figures.canvas import (
    BLUE,
    INK,
    LINE,
    ORANGE,
    PALE,
    PAPER,
    blend,
    fitting,
    font,
    new,
    width_of,
    write_upwards,
)

if TYPE_CHECKING:
    import PIL.Image
    import PIL.ImageDraw

NUMBERED = 25
"""Most classes whose cells hold numbers."""
LONGEST_NAME = 170  # pixels
MARGIN = 24
LEGEND = "blue: right, orange: mistakes, darker: a larger share of the row"


def confusion_matrix(counts: Any, class_names: Sequence[str], *, title: str = "") -> PIL.Image.Image:
    """Draw a confusion matrix: right answers in blue, mistakes in orange, by their share of the row.

    The shade of mistakes is the square root of the share: one in a hundred is seen. Few classes have their
    numbers in the cells, with ten or less the share of the row too.

    Args:
        counts: images by true class (row) and prediction (column): (K, K), whole numbers.
        class_names: K names; of many classes every so many-th is shown.
        title: a line above; empty for none.
    """
    import PIL.Image

    matrix = np.asarray(counts)
    classes = len(matrix)
    shares = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    cell = _cell_of(classes)
    side = cell * classes
    size = 14 if classes <= NUMBERED else 12
    names = [fitting(str(name), size, LONGEST_NAME) for name in class_names]
    step = max(1, -(-(size + 4) // cell))
    longest = max((width_of(name, size) for name in names[::step]), default=0)
    upright = classes > NUMBERED or max(width_of(name, size) for name in names) > cell - 6
    left = MARGIN + 22 + longest + 10
    named = longest if upright else size + 4  # height of the columns' names
    top = MARGIN + (34 if title else 0) + 24 + named + 8
    widths = (left + side, left + width_of(LEGEND, 12), MARGIN + width_of(title, 18, bold=True))
    width = max(widths) + MARGIN
    image, draw = new(width, top + side + 38)

    cells = PIL.Image.fromarray(_shades(shares)).resize((side, side), PIL.Image.Resampling.NEAREST)
    image.paste(cells, (left, top))
    if title:
        draw.text((MARGIN, MARGIN), title, font=font(18, bold=True), fill=INK)
    draw.text((left, top - named - 28), "prediction", font=font(13), fill=PALE)
    write_upwards(image, MARGIN + 4, top + width_of("true class", 13), "true class", 13, PALE)
    for place in range(0, classes, step):
        middle = cell * place + cell // 2
        draw.text((left - 8, top + middle), names[place], font=font(size), fill=INK, anchor="rm")
        if upright:
            write_upwards(image, left + middle, top - 8, names[place], size)
        else:
            draw.text((left + middle, top - 8), names[place], font=font(size), fill=INK, anchor="md")
    if classes <= NUMBERED:
        _write_numbers(draw, matrix, shares, left, top, cell)
    else:
        draw.rectangle((left - 1, top - 1, left + side, top + side), outline=LINE)
    draw.text((left, top + side + 12), LEGEND, font=font(12), fill=PALE)
    return image


def _cell_of(classes: int) -> int:
    """Side of a cell in pixels."""
    if classes <= 10:
        return 48
    return 40 if classes <= NUMBERED else max(1, 900 // classes)


def _shades(shares: NDArray[Any]) -> NDArray[np.uint8]:
    """Colours (K, K, 3) of the cells."""
    right = np.eye(len(shares), dtype=bool)[..., None]
    return np.where(right, blend(shares, BLUE), blend(np.sqrt(shares), ORANGE))


def _write_numbers(
    draw: PIL.ImageDraw.ImageDraw, matrix: NDArray[Any], shares: NDArray[Any], left: int, top: int, cell: int
) -> None:
    classes = len(matrix)
    for place in range(classes + 1):
        at = place * cell
        draw.line((left, top + at, left + classes * cell, top + at), fill=LINE)
        draw.line((left + at, top, left + at, top + classes * cell), fill=LINE)
    for row, column in np.argwhere(matrix):
        share = shares[row, column] if row == column else np.sqrt(shares[row, column])
        ink = PAPER if share > 0.55 else INK
        x, y = left + cell * column + cell // 2, top + cell * row + cell // 2
        number = str(matrix[row, column])
        size = next((size for size in (14, 12, 10, 9) if width_of(number, size) <= cell - 4), 8)
        with_share = classes <= 10
        draw.text((x, y - 6 * with_share), number, font=font(size), fill=ink, anchor="mm")
        if with_share:
            draw.text((x, y + 11), _percent(shares[row, column]), font=font(10), fill=ink, anchor="mm")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.995 or share == 0 else f"{100 * share:.1f} %"
