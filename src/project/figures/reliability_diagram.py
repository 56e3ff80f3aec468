"""Whether a classifier is as sure as it is right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from project.figures.canvas import BLUE, INK, LINE, ORANGE, PALE, blend, font, new, write_upwards

if TYPE_CHECKING:
    import PIL.Image

SIDE, STRIP = 400, 90
"""Of the diagram, and height of the histogram below it, pixels."""
LEFT, TOP, RIGHT = 70, 56, 30


def reliability_diagram(
    confidence: Any, accuracy: Any, counts: Any, *, title: str = "Reliability"
) -> PIL.Image.Image:
    """Draw the accuracy of each bin of confidence against the diagonal, and how many images it holds.

    Bars are the accuracy; orange is what confidence and accuracy differ by. The calibration error is the
    mean of that over the images (ECE; Guo et al. 2017, arXiv 1706.04599, sec. 2).

    Args:
        confidence: mean confidence of each bin (n,), the bins dividing [0, 1] evenly; anything in empty ones.
        accuracy: share of right answers of each bin (n,).
        counts: images of each bin (n,).
        title: a line above.
    """
    sure, right, images = (np.asarray(values, float) for values in (confidence, accuracy, counts))
    bins, total = len(images), max(1.0, images.sum())
    filled = images > 0
    error = float((images[filled] * np.abs(sure[filled] - right[filled])).sum() / total)
    gap = tuple(int(value) for value in blend(np.array(0.55), ORANGE))
    height = TOP + SIDE + 24 + STRIP + 46
    image, draw = new(LEFT + SIDE + RIGHT, height)
    draw.text((LEFT, 18), title, font=font(18, bold=True), fill=INK)
    told = f"calibration error {100 * error:.1f} %"
    draw.text((LEFT + SIDE, 22), told, font=font(13), fill=PALE, anchor="ra")
    floor = TOP + SIDE
    for tenth in range(0, 11, 2):
        y, x = floor - tenth * SIDE // 10, LEFT + tenth * SIDE // 10
        draw.line((LEFT, y, LEFT + SIDE, y), fill=LINE)
        draw.text((LEFT - 8, y), f"{tenth / 10:g}", font=font(12), fill=PALE, anchor="rm")
        draw.text((x, height - 34), f"{tenth / 10:g}", font=font(12), fill=PALE, anchor="mm")
    base = floor + 24 + STRIP
    for place in np.flatnonzero(filled):
        x0 = LEFT + round(place * SIDE / bins) + 1
        x1 = LEFT + round((place + 1) * SIDE / bins) - 1
        at = floor - round(right[place] * SIDE)
        ought = floor - round(sure[place] * SIDE)
        draw.rectangle((x0, at, x1, floor), fill=BLUE)
        draw.rectangle((x0, min(at, ought), x1, max(at, ought)), fill=gap)
        draw.line((x0, at, x1, at), fill=BLUE, width=2)
        draw.rectangle((x0, base - max(1, round(images[place] / images.max() * STRIP)), x1, base), fill=PALE)
    draw.line((LEFT, floor, LEFT + SIDE, TOP), fill=INK, width=1)
    draw.line((LEFT, floor, LEFT + SIDE, floor), fill=INK)
    draw.line((LEFT, base, LEFT + SIDE, base), fill=INK)
    write_upwards(image, 18, TOP + SIDE // 2 + 30, "accuracy", 13, PALE)
    write_upwards(image, 18, base - 20, "images", 13, PALE)
    most = f"{images.max(initial=0):,.0f}"
    draw.text((LEFT - 8, base - STRIP + 6), most, font=font(12), fill=PALE, anchor="rm")
    draw.text((LEFT + SIDE // 2, height - 13), "confidence", font=font(13), fill=PALE, anchor="mm")
    return image
