"""Parallel coordinates of a sweep: a line a point, through its value of every key, to what came out."""

from collections.abc import Sequence

from project.reporting.compare.scales import Scale, metric_scale, scale
from project.reporting.html.html import Markup, element
from project.reporting.html.wording import is_share, metric
from project.runs.collect import Comparison
from project.runs.hparam_diff import short_names
from project.runs.table import RESERVED, shorten

WIDTH, HEIGHT = 960.0, 340.0
LEFT, RIGHT, TOP, BOTTOM = 70.0, 90.0, 44.0, 20.0
MOST_KEYS = 9
MOST_LINES = 400
NAMED = 8
"""Points that have a colour of their own; the same as among the learning curves."""
SPREAD = 0.035
"""Of the height: how far lines through one value are drawn apart."""


def parallel_coordinates(comparison: Comparison) -> Markup | None:
    """Draw the points of a comparison, the best ones in colours; None if no key differs."""
    keys = comparison.shown.told[:MOST_KEYS]
    points = comparison.points[:MOST_LINES]
    if not keys or len(points) < 2:
        return None
    scales = _scales(comparison, keys, len(points))
    width, height = WIDTH, HEIGHT
    gap = (width - LEFT - RIGHT) / (len(scales) - 1)
    xs = [LEFT + gap * number for number in range(len(scales))]
    lines = [
        _line(number, [one.places[number] for one in scales], scales, xs, len(points))
        for number in range(len(points))
    ]
    axes = [
        _axis(one, x, last=place == len(scales) - 1)
        for place, (one, x) in enumerate(zip(scales, xs, strict=True))
    ]
    values = [metric(comparison.by, point.mean(comparison.by)) for point in points]
    titles = [
        element("title", f"rank {number + 1}: {comparison.by} {value}") for number, value in enumerate(values)
    ]
    drawn = [
        element("g", titles[number], line, class_=f"line c{number}" if number < NAMED else "line faint")
        for number, line in enumerate(lines)
    ]
    left_out = len(comparison.shown.told) - len(keys)
    notes = [f"The best {NAMED} have colours, as in the learning curves."] if len(points) > NAMED else []
    notes += [f"{left_out} keys that differ too have no axis."] if left_out else []
    notes += [f"Only the best {MOST_LINES} are drawn."] if len(comparison.points) > MOST_LINES else []
    title = f"What led to which {comparison.by}"
    picture = element(
        "svg", element("title", f"{title}: a line a point through {', '.join(keys)}"), drawn[::-1], axes,
        class_="chart parallel", viewBox=f"0 0 {width:g} {height:g}", role="img",
    )  # fmt: skip
    return element(
        "figure", element("figcaption", element("h4", title)), element("div", picture, class_="scroll"),
        element("p", " ".join(notes), class_="note") if notes else None, class_="card plot wide",
    )  # fmt: skip


def _scales(comparison: Comparison, keys: Sequence[str], count: int) -> list[Scale]:
    runs = [point.runs[0] for point in comparison.points[:count]]
    names = short_names(keys, RESERVED)
    shown = comparison.shown
    scales = [
        scale(names[key], [shown.value(run, key) for run in runs], shown.texts(runs, key), 14) for key in keys
    ]
    factor = 100.0 if is_share(comparison.by) else 1.0
    values = [factor * point.mean(comparison.by) for point in comparison.points[:count]]
    unit = ", %" if is_share(comparison.by) else ""
    return [*scales, metric_scale(comparison.by + unit, values, larger_is_better=comparison.larger_is_better)]


def _y(place: float) -> float:
    return HEIGHT - BOTTOM - place * (HEIGHT - TOP - BOTTOM)


def _line(
    number: int, places: Sequence[float], scales: Sequence[Scale], xs: Sequence[float], count: int
) -> Markup:
    """A curve through a point's places; it leaves and meets each axis at a right angle."""
    apart = SPREAD * ((number + 0.5) / count - 0.5) * 2
    ys = [_y(place - apart if one.crowded else place) for place, one in zip(places, scales, strict=True)]
    half = (xs[1] - xs[0]) / 2
    path = f"M{xs[0]:.0f} {ys[0]:.1f}"
    for x, y, before in zip(xs[1:], ys[1:], ys, strict=False):
        path += f"C{x - half:.0f} {before:.1f} {x - half:.0f} {y:.1f} {x:.0f} {y:.1f}"
    return element("path", d=path)


def _axis(one: Scale, x: float, *, last: bool) -> Markup:
    ticks = [
        element(
            "text",
            text,
            x=f"{x + (8 if last else -8):.0f}",
            y=f"{_y(place):.1f}",
            dy="0.35em",
            text_anchor="start" if last else "end",
        )
        for place, text in sorted(one.ticks)
    ]
    marks = [
        element("line", x1=f"{x - 3:.0f}", x2=f"{x + 3:.0f}", y1=f"{_y(place):.1f}", y2=f"{_y(place):.1f}")
        for place, _ in one.ticks
    ]
    name = element(
        "text",
        shorten(one.name, 18, keep="start"),
        x=f"{x:.0f}",
        y=TOP - 22,
        text_anchor="middle",
        class_="name",
    )
    bar = element("line", x1=f"{x:.0f}", x2=f"{x:.0f}", y1=TOP - 8, y2=HEIGHT - BOTTOM + 8, class_="axis")
    return element("g", bar, marks, ticks, name, class_="grid")
