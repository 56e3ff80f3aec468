"""Confusion matrix and reliability diagram of a classifier.

Both functions take arrays, or tensors on the CPU, and return a `PIL.Image.Image`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from project.figures.contact_sheet import INK, PAPER, RULE, TITLE_SIZE, font, text_width
from project.runtime.text import shorten

if TYPE_CHECKING:
    import PIL.Image

CORRECT, WRONG, GAP = "#08519c", "#d94801", "#eb9a70"
DIM = "#5b6676"
TEXT_SIZE = 12
MAX_NUMBERED_CLASSES = 20
MAX_NAME_LENGTH = 22
MATRIX_PIXELS = 900  # side of the matrix of many classes
DPI = 100
MARGIN = 16
LEGEND = "blue: correct, orange: wrong; stronger: a larger fraction of the row"


def confusion_matrix(counts: Any, class_names: Sequence[str], *, title: str = "") -> "PIL.Image.Image":
    """Draw a confusion matrix: correct predictions in blue, errors in orange, shaded by fraction of the row.

    The shade of errors is the square root of the fraction, so that 1 % is visible. Cells show counts for up
    to 20 classes, and also fractions of the row for up to 10 classes.

    Args:
        counts: number of images by true class (row) and predicted class (column), (K, K) integers.
        class_names: K names; with many classes only every n-th name is drawn.
        title: title above the matrix (default none).
    """
    import PIL.Image
    import PIL.ImageDraw

    matrix = np.asarray(counts)
    classes = len(matrix)
    fractions = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    cell = cell_pixels(classes)
    side = cell * classes
    shown = range(0, classes, -(-18 // cell))
    names = {place: shorten(str(class_names[place]), MAX_NAME_LENGTH) for place in shown}
    label_width = max(text_width(name, TEXT_SIZE) for name in names.values())
    is_upright = label_width > cell - 4
    left = MARGIN + 22 + label_width
    top = MARGIN + 30 + (34 if title else 0) + (label_width if is_upright else 12)
    width = max(side, text_width(LEGEND, TEXT_SIZE), text_width(title, TITLE_SIZE, bold=True))
    image = PIL.Image.new("RGB", (left + width + MARGIN, top + side + 30 + MARGIN), PAPER)
    draw = PIL.ImageDraw.Draw(image)

    def write(x: float, y: float, text: str, anchor: str, fill: Any = INK, size: float = TEXT_SIZE) -> None:
        draw.text((x, y), text, fill, font(size), anchor, align="center")

    def write_upright(x: float, y: float, text: str, fill: Any = INK) -> None:
        label = PIL.Image.new("RGB", (text_width(text, TEXT_SIZE), TEXT_SIZE + 5), PAPER)
        PIL.ImageDraw.Draw(label).text((0, 0), text, fill, font(TEXT_SIZE))
        upright = label.transpose(PIL.Image.Transpose.ROTATE_90)
        image.paste(upright, (round(x - upright.width / 2), round(y - upright.height)))

    image.paste(PIL.Image.fromarray(_cells(fractions, cell)), (left - 1, top - 1))
    draw.text((left, MARGIN), title, INK, font(TITLE_SIZE, bold=True))
    write(left, top - label_width - 14 if is_upright else top - 26, "prediction", "ls", DIM)
    write_upright(MARGIN + 8, top + text_width("true class", TEXT_SIZE), "true class", DIM)
    for place, name in names.items():
        middle = cell * (place + 0.5)
        write(left - 6, top + middle, name, "rm")
        if is_upright:
            write_upright(left + middle, top - 6, name)
        else:
            write(left + middle, top - 6, name, "ms")
    write(left, top + side + 10, LEGEND, "la", DIM)
    if classes <= MAX_NUMBERED_CLASSES:
        for row, column in np.argwhere(matrix):
            fraction = fractions[row, column]
            is_dark = (fraction if row == column else np.sqrt(fraction)) > 0.55
            number = str(matrix[row, column]) + (f"\n{fraction:.3f}" if classes <= 10 else "")
            size = min(TEXT_SIZE, int(1.6 * cell / len(number.partition("\n")[0])))
            x, y = left + cell * (column + 0.5), top + cell * (row + 0.5)
            write(x, y, number, "mm", "white" if is_dark else "black", size)
    return image


def cell_pixels(classes: int) -> int:
    """Return the side of a matrix cell in pixels, for a number of classes."""
    if classes <= 10:
        return 48
    return 40 if classes <= MAX_NUMBERED_CLASSES else max(1, MATRIX_PIXELS // classes)


def _cells(fractions: NDArray[Any], cell: int) -> NDArray[np.uint8]:
    """Return the pixels (H, W, 3) of all cells in a frame, with lines between large cells."""
    shades = blend(np.sqrt(fractions), WRONG)
    diagonal = np.arange(len(fractions))
    shades[diagonal, diagonal] = blend(fractions.diagonal(), CORRECT)
    pixels = shades.repeat(cell, 0).repeat(cell, 1)
    if len(fractions) <= MAX_NUMBERED_CLASSES:
        pixels[::cell] = RULE
        pixels[:, ::cell] = RULE
    framed = np.full((len(pixels) + 2, len(pixels) + 2, 3), RULE, np.uint8)
    framed[1:-1, 1:-1] = pixels
    return framed


def blend(fractions: Any, color: str) -> NDArray[np.uint8]:
    """Blend fractions (…) from white (0) to a color (1); return RGB values (…, 3)."""
    full = np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)], float)
    return np.rint(255 + np.asarray(fractions, float)[..., None] * (full - 255)).astype(np.uint8)


def reliability_diagram(
    confidence: Any, accuracy: Any, counts: Any, *, title: str = "Reliability"
) -> "PIL.Image.Image":
    """Draw a reliability diagram: accuracy by confidence bin, and a histogram of the confidence.

    Blue bars show the accuracy, orange parts its difference from the mean confidence. The expected
    calibration error is the mean difference over all images (Guo et al. 2017, arXiv 1706.04599, sec. 2).

    Args:
        confidence: mean confidence of each bin, (n,); the bins divide [0, 1] evenly; empty bins are ignored.
        accuracy: fraction of correct predictions in each bin, (n,).
        counts: number of images in each bin, (n,).
        title: title above the diagram (default "Reliability").
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from project.figures.charts import figure_style, to_image

    confidences, accuracies, images = (np.asarray(values, float) for values in (confidence, accuracy, counts))
    bins = len(images)
    filled = images > 0
    left = np.flatnonzero(filled) / bins
    confidences, accuracies, images = confidences[filled], accuracies[filled], images[filled]
    gap = np.abs(confidences - accuracies)
    error = float((images * gap).sum() / max(1.0, images.sum()))
    bar: dict[str, Any] = {"width": 1 / bins, "align": "edge", "edgecolor": "white", "linewidth": 1}
    with figure_style(figure__dpi=DPI):
        figure = Figure(figsize=(5, 6.2))
        above = figure.add_axes((0.13, 0.33, 0.83, 0.6))
        below = figure.add_axes((0.13, 0.09, 0.83, 0.19), sharex=above)
        above.bar(left, accuracies, color=CORRECT, **bar)
        above.bar(left, gap, bottom=np.minimum(confidences, accuracies), color=GAP, **bar)
        above.plot([0, 1], [0, 1], color="black", linewidth=1)
        above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        above.grid(axis="y")
        above.tick_params(labelbottom=False)
        above.set_title(title, loc="left", fontweight="bold", fontsize=12)
        above.set_title(f"calibration error {error:.4f}", loc="right", color=DIM)
        below.bar(left, images, color=DIM, **bar)
        below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        below.set(xlabel="confidence", ylabel="images")
        return to_image(figure)
