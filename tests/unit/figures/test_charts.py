"""Scale of line charts: the runs that matter, clipped lines, logarithmic axes."""

import math

import pytest

from project.figures.charts import Line, clip_line, draw_lines, figure_style, make_axes, runs_that_matter


def scale_of(values: list[float]) -> str:
    with figure_style():
        axes = make_axes(400, 200, (50, 10, 10, 30))
        draw_lines(axes, [Line("a", range(len(values)), values)], x_label="step", may_be_log=True)
    return str(axes.get_yscale())


def test_an_axis_is_logarithmic_from_a_ratio_of_ten_on() -> None:
    assert scale_of([0.1, 0.5, 1.0]) == "log"
    assert scale_of([0.11, 0.5, 1.0]) == "linear"
    assert scale_of([0.0, 0.5, 1.0]) == "linear"


def test_diverged_runs_do_not_set_the_scale() -> None:
    good = [Line(str(end), [0, 1, 2], [2.3, 1.0, end]) for end in (0.5, 0.55, 0.6, 0.62, 0.7)]
    bad = Line("diverged", [0, 1, 2], [2.3, 100.0, 1e6])
    lost = Line("lost", [0, 1, 2], [2.2, math.nan, math.nan])
    assert runs_that_matter(good, larger_is_better=False) == (None, [])
    assert runs_that_matter([*good, bad], larger_is_better=False) == ((0.5, 2.3), [bad])
    assert runs_that_matter([*good, bad, lost], larger_is_better=False)[0] == (0.5, 2.3)
    mirrored = [Line(line.name, line.x, [-y for y in line.y]) for line in [*good, bad]]
    assert runs_that_matter(mirrored, larger_is_better=True) == ((-2.3, -0.5), [mirrored[-1]])
    assert runs_that_matter([*good[:2], bad], larger_is_better=False) == (None, [])  # too few to judge


def test_a_clipped_line_ends_on_the_bound() -> None:
    clipped = clip_line(Line("a", [0, 1, 2, 3], [0.0, 10.0, 10.0, 0.0], std=[1, 1, 1, 1]), 0.0, 5.0)
    assert list(clipped.x) == [0, 0.5, 1, 2, 2.5, 3]
    assert list(clipped.y) == pytest.approx([0, 5, math.nan, math.nan, 5, 0], nan_ok=True)
    across = clip_line(Line("a", [0, 1], [-5.0, 15.0]), 0.0, 10.0)
    assert list(across.x) == pytest.approx([0, 0.25, 0.75, 1])
    same = Line("a", [0, 1, 2], [1.0, math.nan, 3.0])
    assert list(clip_line(same, 0.0, 5.0).y) == pytest.approx([1, math.nan, 3], nan_ok=True)
