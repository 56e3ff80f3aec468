"""Figures of comparisons: positions of lines and ticks; no text is clipped or overlaps another."""

import json
import math
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from written_runs import write_curve, write_run

from project.errors import InputError
from project.figures.charts import FAINT, figure_style
from project.figures.parallel_coordinates import key_axis, metric_axis
from project.reporting.compare_plot import draw, make_figure
from project.runs.comparison import Comparison, compare
from project.runs.hparam_diff import ABSENT
from project.runtime.output_files import IMAGE, is_earlier_output


def write_runs(folder: Path, count: int) -> Path:
    """Write runs of two networks with several learning rates and two seeds; one of four or more diverged."""
    for number in range(count):
        point = number // 2
        overrides = [f"model={('mlp', 'cnn')[point % 2]}", f"seed={number % 2}"]
        if count > 4:
            momentum = [None, 0.5, [0.9, 0.999]][point % 3]
            overrides += [f"optim.lr={10 ** -(1 + point % 5)}", f"optim.momentum={json.dumps(momentum)}"]
        acc = math.nan if number == 4 else 0.7 + 0.2 * number / count
        run = write_run(folder / str(number), *overrides, acc=acc)
        write_curve(run, *(acc - 0.3 / epoch for epoch in range(1, 6)))
    return folder


def picture_of(comparison: Comparison) -> Figure:
    with figure_style():
        return make_figure(comparison)


def texts(figure: Figure) -> list[Text]:
    """Return all visible texts of a drawn figure."""
    FigureCanvasAgg(figure).draw()
    unseen = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
            unseen |= {label for place, label in ticks if not low <= place <= high}
    found = figure.findobj(Text)
    return [text for text in found if text.get_text() and text.get_visible() and text not in unseen]


def boxes_within(figure: Figure) -> list[tuple[str, Bbox]]:
    """Return all texts with their boxes, and check that none is clipped."""
    width, height = figure.bbox.size
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
    assert len(boxes) > 8
    for words, box in boxes:
        assert box.x0 >= 0, words
        assert box.y0 >= 0, words
        assert box.x1 <= width, words
        assert box.y1 <= height, words
    return boxes


def assert_apart(boxes: list[tuple[str, Bbox]]) -> None:
    for number, (words, box) in enumerate(boxes):
        for others, other in boxes[:number]:
            assert not box.padded(-2).overlaps(other.padded(-2)), (words, others)


@pytest.mark.parametrize("count", [2, 6, 40])
@pytest.mark.parametrize("each", [False, True])
def test_nothing_is_cut_off_or_overlaps(tmp_path: Path, count: int, each: bool) -> None:
    figure = picture_of(compare([write_runs(tmp_path, count)], each=each))
    assert_apart(boxes_within(figure))


def test_many_keys_of_long_names_fit_too(tmp_path: Path) -> None:
    keys = [f"trainer.a_key_of_a_long_name_{letter}" for letter in "abcdefghijkl"]
    for number in range(6):
        values = [f"{key}={json.dumps(f'value_of_some_length_{number}')}" for key in keys]
        write_run(tmp_path / str(number), *values, acc=0.9 + number / 100)
    figure = picture_of(compare([tmp_path]))
    boxes = boxes_within(figure)
    assert "val/acc of 6 runs; 2 keys left out" in [words for words, _ in boxes]
    assert_apart(boxes)


def test_a_line_a_point_and_the_best_eight_in_the_legend(tmp_path: Path) -> None:
    figure = picture_of(compare([write_runs(tmp_path, 40)]))
    above, below = figure.axes
    assert len(above.patches) == 20
    assert len({patch.get_edgecolor()[:3] for patch in above.patches}) == 9, "eight colors, and gray"
    legend = below.get_legend()
    assert legend is not None
    assert legend.get_title().get_text() == "the best 8 of 20; others gray"
    labels = [text.get_text() for text in legend.get_texts()]
    assert len(labels) == 8
    assert labels[0].replace("\N{NO-BREAK SPACE}", " ").startswith("0.8925 ± 0.0035: CNN3x3, lr 1e-05")
    gray = [line for line in below.get_lines() if line.get_color() == FAINT]
    assert len(gray) == 11  # the twentieth diverged: no curve


def test_curves_alone_where_nothing_differs(tmp_path: Path) -> None:
    write_curve(write_run(tmp_path / "a", "seed=1"), 0.1, 0.2)
    write_curve(write_run(tmp_path / "b", "seed=2"), 0.3, 0.4)
    (axes,) = picture_of(compare([tmp_path])).axes
    (line,) = axes.get_lines()
    assert list(line.get_xdata()) == [1, 2]
    assert list(line.get_ydata()) == pytest.approx([0.2, 0.3])


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_pictures_in_three_formats(tmp_path: Path, ending: str) -> None:
    file = tmp_path / "new" / f"picture.{ending}"
    draw(compare([write_runs(tmp_path / "runs", 2)]), file)
    assert is_earlier_output(file, IMAGE)
    assert file.stat().st_size > 5000
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"plot=.*cannot be written"):
        draw(compare([tmp_path / "runs"]), tmp_path / "file" / f"x.{ending}")


def test_an_axis_is_logarithmic_from_a_ratio_of_ten_on() -> None:
    values = [10.0**-exponent for exponent in range(1, 6)]
    assert key_axis("lr", values, list("abcde"), 14).places == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert key_axis("lr", [0.1, 0.01, 0.001], list("abc"), 14).places == pytest.approx([1, 0.5, 0])
    assert key_axis("n", [10, 20, 100], list("abc"), 14).places == pytest.approx([0, math.log10(2), 1])
    assert key_axis("n", [10, 20, 90], list("abc"), 14).places == pytest.approx([0, 0.125, 1])
    searched = key_axis("n", [10, 20, 40], list("abc"), 14, is_log=True)
    assert searched.places == pytest.approx([0, 0.5, 1])


def test_numbers_keep_their_place_and_ticks_give_way() -> None:
    close = key_axis("n", [1, 1.01, 1.02, 5], ["1", "1.01", "1.02", "5"], 14)
    assert close.places == pytest.approx([0, 0.0025, 0.005, 1])
    assert [text for _, text in close.ticks] == ["1", "5"]
    # A 0 has no logarithm: it lies below the others, which keep their distances.
    side = key_axis("weight_decay", [0.01, 0, 0.0001, 0.001], ["0.01", "0", "0.0001", "0.001"], 14)
    assert side.places == pytest.approx([1, 0, 0.14, 0.57])
    assert sorted(text for _, text in side.ticks) == ["0", "0.0001", "0.001", "0.01"]
    assert key_axis("dropout", [0, 0.2, 0.5], ["0", "0.2", "0.5"], 14).places == pytest.approx([0, 0.4, 1])


def test_what_is_missing_lies_below_the_numbers() -> None:
    clip = key_axis("clip", [1.0, None, 2.0], ["1", "null", "2"], 14)
    assert clip.places == pytest.approx([0.14, 0, 1])
    assert (0.0, "null") in clip.ticks
    mixed = key_axis("widths", [[64], ABSENT, [512, 256]], ["[64]", "–", "[512,256]"], 6)
    assert [text for _, text in mixed.ticks] == ["–", "[5…56]", "[64]"]
    assert mixed.places == pytest.approx([5 / 6, 1 / 6, 3 / 6])


def test_diverged_runs_do_not_press_the_others_together() -> None:
    values = [0.1, *(0.9 + 0.01 * number for number in range(9)), math.nan]
    axis = metric_axis("val/acc", values, larger_is_better=True)
    assert axis.places[0] == pytest.approx(0.14)
    assert axis.places[1] > 0.5
    assert axis.places[-2:] == [1, 0]
    # The quartiles are 0.9075 and 0.9625.
    assert [text for _, text in axis.ticks[:2]] == ["nan", "≤ 0.743"]
    losses = metric_axis("val/loss", [1 - value for value in values[:-1]], larger_is_better=False)
    assert losses.places[0] == 1
    assert losses.ticks[0][1].startswith("≥ 0.")
