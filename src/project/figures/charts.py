"""Line charts and the common figure style: matplotlib figures as image files, or as SVG in HTML pages.

In an SVG, colors are CSS variables (`--c0`, `--ink` …), so that a figure adapts to light and dark mode.
Figures are `matplotlib.figure.Figure` objects, without the global state of pyplot.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from project.runtime.text import strip_control

COLORS = ("#0072b2", "#d55e00", "#008f6b", "#b0528a", "#b88600", "#3a9bdc", "#6b5bb5", "#5f6b7a")
"""Line colors: Okabe and Ito's color-blind-safe palette, darkened for a white background."""
FAINT, INK, DIM, GRID, PAPER = "#9aa5b4", "#1b2330", "#5b6676", "#e8ebf0", "#ffffff"
CSS_NAMES = {color: f"c{number}" for number, color in enumerate(COLORS)}
CSS_NAMES |= {FAINT: "faint", INK: "ink", DIM: "dim", GRID: "grid", PAPER: "card"}
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text elements instead of glyph paths
    "text.color": INK,
    "text.parse_math": False,  # a $ in a value does not start a formula
    "xtick.color": FAINT,
    "xtick.labelcolor": DIM,
    "ytick.color": FAINT,
    "ytick.labelcolor": DIM,
}
MAX_DRAWN_VALUE = 1e100  # larger values are clipped
MIN_RATIO_FOR_LOG = 10
"""Ratio of the values from which an axis is logarithmic."""
MIN_RUNS_FOR_FENCE = 4
MAX_MARKERS = 30  # lines with more points have no markers
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
DECIMALS = re.compile(r"(\.\d\d)\d+")
FONT = re.compile(r"font(-size|-family)?: [^;]*(;|$)")  # font-size, font-family, or the shorthand
POINTS_PER_INCH = 72


@dataclass(frozen=True)
class Line:
    """Line of a chart, with an optional band."""

    name: str  # legend text
    x: Sequence[float]  # positions, ascending
    y: Sequence[float]  # values; NaN and infinite values leave gaps
    color: int | None = 0  # index in COLORS, modulo their number; None: faint and not in the legend
    std: Sequence[float] = ()  # half height of the band at each position

    @property
    def css_class(self) -> str:
        """CSS class of the line's color."""
        return "faint" if self.color is None else f"c{self.color % len(COLORS)}"


@contextmanager
def figure_style(**changes: Any) -> Iterator[None]:
    """Apply the common style, without warnings about missing glyphs.

    `changes` are rcParams to override, with `__` for the dot: `font__size=12`.
    """
    style: Any = STYLE | {key.replace("__", "."): value for key, value in changes.items()}
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*[Gg]lyph")
        yield


def make_axes(width: float, height: float, margins: tuple[float, float, float, float]) -> Axes:
    """Return the axes of a new figure.

    Args:
        width: width of the figure, points (the unit of the SVG).
        height: height of the figure, points.
        margins: left, right, top and bottom margin, points.
    """
    left, right, top, bottom = margins
    figure = Figure(figsize=(width / POINTS_PER_INCH, height / POINTS_PER_INCH))
    place = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    return figure.add_axes(place)


def draw_lines(
    axes: Axes,
    lines: Sequence[Line],
    *,
    x_label: str,
    marked: tuple[float, str] | None = None,
    may_be_log: bool = False,
    y_range: tuple[float, float] | None = None,
) -> None:
    """Draw lines, the first one on top; lines leave the axes where their values leave `y_range`.

    Args:
        axes: axes to draw in.
        lines: lines to draw.
        x_label: label of the x axis.
        marked: position and text of a vertical mark (default None).
        may_be_log: use a logarithmic y axis if all values are positive and span a factor of at least
            `MIN_RATIO_FOR_LOG` (default False).
        y_range: smallest and largest value to draw (default None: those of all lines).
    """
    axes.margins(x=0, y=0.05)
    for line in reversed(lines):
        _draw_line(axes, line if y_range is None else clip_line(line, *y_range))
    drawn = np.concatenate([_finite(line.y) for line in lines] + ([np.array(y_range)] if y_range else []))
    drawn = drawn[np.isfinite(drawn)]
    if y_range is not None:
        drawn = drawn.clip(*y_range)
    if may_be_log and drawn.size and 0 < drawn.min() * MIN_RATIO_FOR_LOG <= drawn.max():
        decades = math.log10(drawn.max()) - math.log10(drawn.min())
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,), numticks=6))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, min_n_ticks=3))
        axes.ticklabel_format(axis="y", useOffset=False)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.grid(axis="y", linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(x_label)
    if marked:
        x, text = marked
        first, last = axes.get_xlim()
        share = (x - first) / (last - first)
        axes.axvline(x, color=DIM, linewidth=1, linestyle=":", clip_on=False)
        side = "left" if share < 0.2 else "right" if share > 0.8 else "center"
        axes.text(x, 1.03, text, ha=side, transform=axes.get_xaxis_transform())


def runs_that_matter(
    lines: Sequence[Line], *, larger_is_better: bool
) -> tuple[tuple[float, float] | None, list[Line]]:
    """Return the range of the lines that matter, and the lines that leave it.

    A line that ends far worse than most, or becomes NaN, as of a diverged run, does not set the scale: its
    last value is more than 3 interquartile ranges worse than the quartile (Tukey, Exploratory Data Analysis,
    1977, sec. 2E: far out).

    Returns:
        Smallest and largest value; None if all lines fit.
    """
    finite = [(line, values[np.isfinite(values)]) for line in lines if len(values := _finite(line.y))]
    finite = [(line, values) for line, values in finite if len(values)]
    if len(finite) < MIN_RUNS_FOR_FENCE:
        return None, []
    sign = -1.0 if larger_is_better else 1.0
    ends = np.array([sign * values[-1] for _, values in finite])
    lower, upper = np.quantile(ends, [0.25, 0.75])
    fence = upper + 3 * max(upper - lower, 0.01 * abs(float(np.median(ends))))
    kept = [values for (_, values), end in zip(finite, ends, strict=True) if end <= fence]
    low, high = float(min(map(np.min, kept))), float(max(map(np.max, kept)))
    outside = [line for line, values in finite if values.min() < low or values.max() > high]
    return ((low, high), outside) if outside and low < high else (None, [])


def clip_line(line: Line, low: float, high: float) -> Line:
    """Return a line without its parts below `low` and above `high`; it ends exactly on these bounds."""
    x, y = np.array(line.x, float), _finite(line.y)
    std = np.array(line.std, float) if any(line.std) else np.zeros(len(x))
    points: list[tuple[float, float, float]] = []
    for place in range(len(x)):
        if place and np.isfinite(y[place - 1 : place + 1]).all():
            first, last = y[place - 1], y[place]
            crossed = [bound for bound in (low, high) if min(first, last) < bound < max(first, last)]
            for bound in crossed if first < last else crossed[::-1]:
                at = x[place - 1] + (bound - first) / (last - first) * (x[place] - x[place - 1])
                points.append((float(at), bound, 0.0))
        is_inside = low <= y[place] <= high
        points.append((float(x[place]), float(y[place]) if is_inside else math.nan, float(std[place])))
    xs, ys, stds = zip(*points, strict=True) if points else ((), (), ())
    # Bands end at the bounds, too: half heights are symmetric, so that the smaller distance counts.
    room = [max(0.0, min(s, y - low, high - y)) if s else 0.0 for y, s in zip(ys, stds, strict=True)]
    return replace(line, x=xs, y=ys, std=room if any(line.std) else ())


def _draw_line(axes: Axes, line: Line) -> None:
    x, y = np.array(line.x, float), _finite(line.y)
    is_faint = line.color is None
    has_markers = np.isfinite(y).sum() == 1 or (not is_faint and len(x) <= MAX_MARKERS)
    color = FAINT if line.color is None else COLORS[line.color % len(COLORS)]
    if any(line.std):
        std = _finite(line.std)
        band = axes.fill_between(x, y - std, y + std, color=color, alpha=0.14, linewidth=0, clip_on=False)
        set_css(band, f"band {line.css_class}")
    (drawn,) = axes.plot(
        x,
        y,
        color=color,
        linewidth=1.0 if is_faint else 1.8,
        alpha=0.55 if is_faint else 1.0,
        marker="o" if has_markers else "",
        markersize=4,
        markerfacecolor=PAPER,
        clip_on=False,  # shows markers at the edge completely, and avoids clip paths in the SVG
        label=line.name,
    )
    set_css(drawn, f"line {line.css_class}", line.name if is_faint else "")


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    """Return values clipped to ±`MAX_DRAWN_VALUE`, with NaN for infinite ones."""
    found = np.array(values, float)
    return np.where(np.isfinite(found), found.clip(-MAX_DRAWN_VALUE, MAX_DRAWN_VALUE), math.nan)


def downsample(values: Sequence[float], most: int) -> list[float]:
    """Average neighboring values so that at most `most` remain; a mean that includes NaN is NaN."""
    if len(values) <= most:
        return list(values)
    return [float(part.mean()) for part in np.array_split(np.array(values, float), most)]


def set_css(artist: Artist, classes: str, title: str = "") -> None:
    """Set the CSS classes and the tooltip that `to_svg` gives the element of an artist."""
    artist.set_gid(strip_control(f"{classes}|{title}"))


def to_svg(axes: Axes, name: str, title: str, **attributes: str) -> str:
    """Return the figure of `axes` as an SVG element for an HTML page; text uses the font of the page.

    The same figure gives the same text.

    Args:
        axes: axes of the figure.
        name: prefix of all identifiers, unique on the page.
        title: description of the figure for screen readers.
        attributes: attributes of the element, with `_` for `-`; `class_` adds CSS classes.
    """
    figure = axes.figure.figure
    _strip_control(figure)
    stream = io.StringIO()
    with figure_style(svg__hashsalt=name):
        figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True)
    root = ElementTree.fromstring(stream.getvalue())  # noqa: S314 (written by matplotlib)
    for tag in (f"{SVG}metadata", f"{SVG}defs"):
        for found in root.findall(tag):
            root.remove(found)
    references = {use.get(f"{XLINK}href", "")[1:] for use in root.iter(f"{SVG}use")}
    for element in list(root.iter()):
        _adapt(element, name, references)
    width, height = (POINTS_PER_INCH * inches for inches in figure.get_size_inches())
    classes = attributes.pop("class_", "")
    root.attrib.clear()
    own = {"class": f"chart {classes}".strip(), "role": "img", "viewBox": f"0 0 {width:g} {height:g}"}
    root.attrib |= own | {key.replace("_", "-"): strip_control(text) for key, text in attributes.items()}
    root.insert(0, _title(strip_control(title)))
    box = axes.get_position()
    vertical = {"y1": f"{height * (1 - box.y1):g}", "y2": f"{height * (1 - box.y0):g}"}
    root.append(ElementTree.Element("line", {"class": "cursor", "visibility": "hidden", **vertical}))
    return ElementTree.tostring(root, encoding="unicode")


def _adapt(element: ElementTree.Element, name: str, references: set[str]) -> None:
    """Convert an SVG element of matplotlib for a page: CSS classes and variables, unique identifiers."""
    element.tag = element.tag.removeprefix(SVG)
    element.attrib.pop("clip-path", None)  # nothing is drawn outside
    identifier = element.attrib.pop("id", "")
    if "|" in identifier:
        classes, _, title = identifier.partition("|")
        element.set("class", classes)
        if title:
            element.insert(0, _title(title))
    elif identifier in references:
        element.set("id", f"{name}-{identifier}")
    if target := element.attrib.pop(f"{XLINK}href", ""):
        element.set("href", f"#{name}-{target[1:]}")
    if path := element.get("d"):
        element.set("d", " ".join(DECIMALS.sub(r"\1", path).split()))
    if style := element.get("style"):
        if style.startswith("font: bold"):
            style += "; font-weight: 600"
        style = FONT.sub("", style)
        for color, variable in CSS_NAMES.items():
            style = style.replace(color, f"var(--{variable})")
        element.set("style", style.strip())


def _title(text: str) -> ElementTree.Element:
    element = ElementTree.Element("title")
    element.text = text
    return element


def x_axis_mapping(axes: Axes) -> list[float]:
    """Return the limits of the x axis, and their positions in the SVG in points."""
    box, width = axes.get_position(), POINTS_PER_INCH * axes.figure.figure.get_size_inches()[0]
    return [float(number) for number in (*axes.get_xlim(), width * box.x0, width * box.x1)]


def to_image(figure: Figure) -> Any:
    """Render a figure as a `PIL.Image.Image` in RGB."""
    import PIL.Image

    _strip_control(figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _strip_control(figure: Figure) -> None:
    for text in figure.findobj(Text):
        if (clean := strip_control(text.get_text())) != text.get_text():
            text.set_text(clean)
