"""Line charts as SVG, drawn by hand: readable without JavaScript, with values under the pointer with it."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from project.reporting.html.axes import Axis, spanning
from project.reporting.html.html import Markup, element, join

WIDTH, HEIGHT = 480.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 54.0, 14.0, 20.0, 38.0
COLOURS = 8
"""That the style sheet has, `c0` and so on; `faint` is one more."""


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        name: for the legend.
        xs: rising.
        ys: as many; where one is no finite number the line has a gap.
        colour: number of its colour, None for a faint line without a place in the legend.
        spread: half the height of a band around it, for each x; empty for none.
        dashed: to tell it apart where colours do not.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: int | None = 0
    spread: Sequence[float] = field(default=())
    dashed: bool = False


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_name: str,
    marker: tuple[float, str] | None = None,
    note: str = "",
    may_be_log: bool = False,
    percent: bool = False,
    wide: bool = False,
) -> Markup:
    """Draw lines over a common axis.

    Args:
        title: what is drawn.
        lines: at least one with a finite value; the first ones lie on top.
        x_name: what the horizontal axis is.
        marker: an x that is marked, and what it is.
        note: below the chart.
        may_be_log: the vertical axis may be logarithmic.
        percent: values are shares, shown as percentages.
        wide: it has all of the page's width.
    """
    width, height = (WIDTH * 2, HEIGHT * 1.25) if wide else (WIDTH, HEIGHT)
    scale = 100.0 if percent else 1.0
    values = [scale * y for line in lines for y in _edges(line)]
    down = spanning(values, height - BOTTOM, TOP, may_be_log=may_be_log)
    across = _horizontal([x for line in lines for x in line.xs], width - RIGHT)
    unit = " %" if percent else ""
    body = [
        _grid(across, down, width, height, x_name, unit),
        _marker(across, height, marker) if marker else None,
        *(_draw(line, across, down, scale) for line in reversed(lines)),
    ]
    described = f"{title}: " + "; ".join(
        _described(line, scale, unit) for line in lines if line.colour is not None
    )
    picture = element(
        "svg",
        element("title", described),
        *body,
        element("line", class_="cursor", x1=0, x2=0, y1=TOP, y2=height - BOTTOM, visibility="hidden"),
        class_="chart",
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        data_lines=_data(lines, scale),
        data_frame=json.dumps([across.low, across.high, across.start, across.end]),
        data_x=x_name,
        data_unit=unit,
    )
    caption = element(
        "figcaption",
        element("h4", title, element("span", " (logarithmic)", class_="dim") if down.log else None),
        legend(lines),
    )
    return element(
        "figure",
        caption,
        element("div", picture, class_="scroll") if wide else picture,
        element("p", note, class_="note") if note else None,
        class_="card plot wide" if wide else "card plot",
    )


def legend(lines: Sequence[Line]) -> Markup | None:
    """The names of lines beside their colours."""
    named = [line for line in lines if line.colour is not None]
    if not named:
        return None
    return element("ul", [element("li", swatch(line), line.name) for line in named], class_="legend")


def swatch(line: Line) -> Markup:
    """A short piece of a line."""
    mark = element("line", x1=0, x2=22, y1=5, y2=5, class_="dashed" if line.dashed else None)
    return element("svg", mark, class_=f"swatch {_class(line)}", viewBox="0 0 22 10", aria_hidden="true")


def _class(line: Line) -> str:
    return "faint" if line.colour is None else f"c{line.colour % COLOURS}"


def _edges(line: Line) -> list[float]:
    """The values that must find room: the band's too."""
    if not line.spread:
        return list(line.ys)
    pairs = list(zip(line.ys, line.spread, strict=True))
    return [y - s for y, s in pairs] + [y + s for y, s in pairs]


def _horizontal(xs: Sequence[float], end: float) -> Axis:
    low, high = min(xs, default=0.0), max(xs, default=1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return Axis(min(low, 0.0) if low < 0.2 * high else low, high, LEFT, end)


def _grid(across: Axis, down: Axis, width: float, height: float, x_name: str, unit: str) -> Markup:
    pieces = []
    for y, text in down.marks(6):
        pieces.append(element("line", x1=LEFT, x2=f"{width - RIGHT:g}", y1=f"{y:.1f}", y2=f"{y:.1f}"))
        pieces.append(element("text", text + unit, x=LEFT - 7, y=f"{y:.1f}", dy="0.35em", text_anchor="end"))
    base = height - BOTTOM
    for x, text in across.marks(9 if width > WIDTH else 7, whole=True):
        pieces.append(element("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=base, y2=base + 4, class_="tick"))
        pieces.append(element("text", text, x=f"{x:.1f}", y=base + 17, text_anchor="middle"))
    pieces.append(element("line", x1=LEFT, x2=width - RIGHT, y1=base, y2=base, class_="axis"))
    middle = (LEFT + width - RIGHT) / 2
    pieces.append(element("text", x_name, x=middle, y=height - 5, text_anchor="middle", class_="name"))
    return element("g", pieces, class_="grid")


def _marker(across: Axis, height: float, marker: tuple[float, str]) -> Markup:
    x = across.place(marker[0])
    share = (x - across.start) / (across.end - across.start)
    return element(
        "g",
        element("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=TOP, y2=height - BOTTOM),
        element("text", marker[1], x=f"{x:.1f}", y=TOP - 7, text_anchor=_anchor(share)),
        class_="marker",
    )  # fmt: skip


def _anchor(share: float) -> str:
    """How a text stands to its place on the horizontal axis, so that neither end is cut off."""
    return "start" if share < 0.2 else "end" if share > 0.8 else "middle"


def _draw(line: Line, across: Axis, down: Axis, scale: float) -> Markup:
    runs = _unbroken(line, scale)
    paths = " ".join(
        "M" + "L".join(f"{across.place(x):.1f} {down.place(y):.1f}" for x, y, _ in run) for run in runs
    )
    pieces = []
    if any(line.spread):
        pieces = [_band(run, across, down) for run in runs if len(run) > 1]
    pieces.append(element("path", d=paths, class_="dashed" if line.dashed else None))
    if line.colour is not None and len(line.xs) <= 30:
        pieces += [
            element("circle", cx=f"{across.place(x):.1f}", cy=f"{down.place(y):.1f}", r=2.6)
            for run in runs
            for x, y, _ in run
        ]
    title = element("title", line.name) if line.colour is None else None
    return element("g", title, pieces, class_=f"line {_class(line)}")


def _band(run: Sequence[tuple[float, float, float]], across: Axis, down: Axis) -> Markup:
    above = [f"{across.place(x):.1f} {down.place(y + s):.1f}" for x, y, s in run]
    below = [f"{across.place(x):.1f} {down.place(y - s):.1f}" for x, y, s in reversed(run)]
    return element("path", d="M" + "L".join([*above, *below]) + "Z", class_="band")


def _unbroken(line: Line, scale: float) -> list[list[tuple[float, float, float]]]:
    """The parts of a line between its gaps: x, y and spread of each point."""
    runs: list[list[tuple[float, float, float]]] = [[]]
    spread = line.spread or [0.0] * len(line.xs)
    for x, y, width in zip(line.xs, line.ys, spread, strict=True):
        if math.isfinite(y):
            runs[-1].append((x, scale * y, scale * width))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _data(lines: Sequence[Line], scale: float) -> str | None:
    """What is shown under the pointer."""
    shown = [
        {
            "name": line.name,
            "class": _class(line),
            "x": [float(f"{x:.5g}") for x in line.xs],
            "y": [float(f"{scale * y:.5g}") if math.isfinite(y) else None for y in line.ys],
        }
        for line in lines
        if line.colour is not None
    ]
    return json.dumps(shown, separators=(",", ":"), ensure_ascii=False) if shown else None


def _described(line: Line, scale: float, unit: str) -> str:
    """A line in words, for those who do not see it."""
    finite = [scale * y for y in line.ys if math.isfinite(y)]
    if not finite:
        return f"{line.name}, no number"
    return f"{line.name} from {finite[0]:.4g}{unit} to {finite[-1]:.4g}{unit}"


def charts(figures: Sequence[Markup]) -> Markup:
    """Charts side by side."""
    return element("div", join(figures), class_="grid-2")
