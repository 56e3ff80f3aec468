"""Figures show the given values, for any number of classes and any image size."""

import numpy as np
import pytest
import torch

from project.figures import confusion_matrix, contact_sheet, reliability_diagram, to_uint8
from project.figures.classification import WRONG, blend, cell_pixels
from project.figures.contact_sheet import fit_text, mistake_caption, text_width


@pytest.mark.parametrize("classes", [2, 10, 40, 1100])
def test_a_confusion_matrix_has_a_cell_for_each_pair_in_its_shade(classes: int) -> None:
    counts = torch.zeros(classes, classes, dtype=torch.long)
    counts[0, 1], counts[0, 0] = 1, 3  # a quarter of the row: half the shade
    names = [f"class {place}" for place in range(classes)]
    image = confusion_matrix(counts, names, title="all")
    cell = cell_pixels(classes)
    assert min(image.size) > classes * cell
    # By its shade alone: a mistake is orange, the rest of the upper triangle is white.
    shade = tuple(blend(np.array(0.5), WRONG).tolist())
    ys, xs = np.nonzero((np.asarray(image) == shade).all(-1))
    assert 0.6 * cell**2 <= len(ys) <= cell**2
    assert xs.max() - xs.min() < cell
    assert ys.max() - ys.min() < cell


def test_small_images_are_enlarged_pixel_by_pixel_and_large_ones_made_smaller() -> None:
    small = np.arange(2 * 3 * 8 * 8, dtype=np.uint8).reshape(2, 3, 8, 8)
    sheet = np.asarray(contact_sheet(small, ["a", "b\nc"], columns=1))
    enlarged = small[0].transpose(1, 2, 0).repeat(12, 0).repeat(12, 1)
    assert (sheet[14 : 14 + 96, 14 : 14 + 96][1:-1, 1:-1] == enlarged[1:-1, 1:-1]).all()
    large = torch.zeros(5, 1, 600, 300, dtype=torch.uint8)
    assert contact_sheet(large, ["a caption that is far too long to fit here"] * 5, columns=4).width < 800
    with pytest.raises(ValueError, match="4, 2, 8, 8"):
        contact_sheet(np.zeros((4, 2, 8, 8), np.uint8), [""] * 4)


def test_normalization_is_undone() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(2, 2, 8, 8)
    mean, std = [0.1, 0.4], [0.3, 0.25]
    normalized = (pixels / 255 - torch.tensor(mean).view(2, 1, 1)) / torch.tensor(std).view(2, 1, 1)
    assert (to_uint8(normalized, mean, std) == pixels.numpy()).all()


def test_a_reliability_diagram_leaves_empty_bins_empty() -> None:
    nothing = reliability_diagram([float("nan")] * 10, [float("nan")] * 10, [0] * 10)
    something = reliability_diagram([0.5] * 10, [0.25] * 10, [0] * 9 + [7])
    assert nothing.size == something.size
    different = (np.asarray(nothing) != np.asarray(something)).any(-1)
    height, width = different.shape
    diagram = different[int(0.08 * height) : int(0.66 * height), int(0.14 * width) : int(0.95 * width)]
    last = int(0.89 * diagram.shape[1])
    assert diagram[:, last:].any(), "the last bin"
    assert not diagram[:, :last].any(), "the others"


@pytest.mark.parametrize("names", [("3", "2"), ("pickup_truck", "streetcar"), ("猫" * 40, "a" * 300)])
def test_the_caption_of_a_mistake_keeps_its_number(names: tuple[str, str]) -> None:
    caption = mistake_caption(*names, 0.973, width=150, source="photos of 2024/cats/a long name.jpg")
    *lines, source = caption.split("\n")
    assert all(text_width(line, 13) <= 150 for line in (*lines, source))
    assert lines[-1].endswith("(97\N{NO-BREAK SPACE}%)")
    assert "→" in lines[0]
    assert source.startswith("…")
    assert source.endswith("name.jpg")
    assert mistake_caption("3", "2", 0.5, width=150) == "3 → 2 (50\N{NO-BREAK SPACE}%)"


def test_text_is_shortened_to_a_width() -> None:
    assert fit_text("short", 13, 200) == "short"
    assert text_width(shortened := fit_text("a rather long text", 13, 60), 13) <= 60
    assert shortened.endswith("…")
