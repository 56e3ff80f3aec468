"""Charts of a page: learning curves of a run; learning curves and parallel coordinates of a sweep."""

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from project.figures.charts import (
    COLORS,
    Line,
    downsample,
    draw_lines,
    figure_style,
    make_axes,
    runs_that_matter,
    to_svg,
    x_axis_mapping,
)
from project.figures.parallel_coordinates import draw_parallel
from project.reporting.compare_plot import curve_lines, parallel_axes, stopped_early
from project.reporting.run_data import RunData, Series, steps_per_epoch
from project.runs.comparison import Comparison
from project.runs.metric_names import is_of_split, is_smaller_better, parse
from project.runtime.text import plural, shorten

WIDTH, HEIGHT, WIDE, WIDE_HEIGHT = 480, 260, 960, 325
"""Points; the page scales them."""
MAX_POINTS, MAX_POINTS_OF_MANY = 300, 60
"""Maximum number of points of a line; longer lines are averaged."""
MAX_LINES = 400
MAX_KEYS = 9
TITLES = {
    "loss": "Loss",
    "acc": "Accuracy",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "images_per_s": "Throughput, images per second",
    "data_wait_fraction": "Fraction of time waiting for data",
    "memory_gb": "GPU memory, GB",
}
"""Chart titles by the last part of the metric name, in their order on the page."""
SPLITS = {"train": "training", "val": "validation"}


@dataclass(frozen=True)
class Chart:
    """SVG chart with legend and note."""

    title: str
    svg: Markup
    legend: Sequence[Line] = ()
    note: str = ""
    is_wide: bool = False
    is_log: bool = False


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    name: str,
    x_label: str,
    marked: tuple[float, str] | None = None,
    note: str = "",
    may_be_log: bool = False,
    is_wide: bool = False,
    y_range: tuple[float, float] | None = None,
) -> Chart:
    """Draw a line chart whose values a page shows at the pointer.

    Arguments as in `draw_lines`; `name` must be unique on the page.
    """
    named = [line for line in lines if line.color is not None]
    with figure_style(font__size=12):
        width, height = (WIDE, WIDE_HEIGHT) if is_wide else (WIDTH, HEIGHT)
        axes = make_axes(width, height, (54, 16, 22, 42))
        draw_lines(axes, lines, x_label=x_label, marked=marked, may_be_log=may_be_log, y_range=y_range)
        ends = "; ".join(f"{line.name} from {line.y[0]:.4g} to {line.y[-1]:.4g}" for line in named)
        attributes = {"data_frame": json.dumps(x_axis_mapping(axes)), "data_x": x_label}
        if named:
            attributes["data_lines"] = json.dumps([_pointer_data(line) for line in named])
        svg = Markup(to_svg(axes, name, f"{title}: {ends}", **attributes))  # noqa: S704 (escaped there)
        return Chart(title, svg, named, note, is_wide, axes.get_yscale() == "log")


def _pointer_data(line: Line) -> dict[str, object]:
    ys = [float(f"{y:.5g}") if math.isfinite(y) else None for y in line.y]
    xs = [float(f"{x:.5g}") for x in line.x]
    return {"name": line.name, "class": line.css_class, "x": xs, "y": ys}


def run_charts(data: RunData) -> tuple[list[Chart], list[str]] | None:
    """Draw all metrics that a run logged more than once, one chart for training and validation.

    The monitored metric comes first, and measurements of speed and memory last.

    Returns:
        Charts, and sentences about constant metrics and single values; None without either.
    """
    kinds: dict[str, dict[str, Series]] = {}
    for name, one in data.series.items():
        if not _is_curve(name, one):
            continue
        split, kind = parse(name)
        last = name.rpartition("/")[2]
        kind = kind if split in SPLITS else last if last in TITLES else name
        kinds.setdefault(kind, {})[name] = one
    vitals, monitored = [*TITLES][2:], parse(data.monitor).kind
    order = sorted(kinds, key=lambda kind: (kind in vitals, [monitored, *TITLES, kind].index(kind), kind))
    per_epoch = steps_per_epoch({name: one for group in kinds.values() for name, one in group.items()})
    drawn, sentences = [], []
    for number, kind in enumerate(order):
        values = {value for one in kinds[kind].values() for value in one.values}
        if all(len(one.values) == 1 for one in kinds[kind].values()):  # a point is not a curve
            once = ", ".join(f"{name} {one.values[0]:.4g}" for name, one in sorted(kinds[kind].items()))
            sentences.append(f"Measured once: {once}.")
        elif len(values) == 1 and kind != monitored:
            sentences.append(f"{TITLES.get(kind, kind)}: {values.pop():g} throughout.")
        else:
            drawn.append(_run_chart(data, kind, kinds[kind], f"chart{number}", per_epoch))
    return (drawn, sentences) if drawn or sentences else None


def _is_curve(name: str, series: Series) -> bool:
    """Return True for metrics with a finite value, except test metrics, counts and best values so far."""
    last = name.rpartition("/")[2]
    is_measured = any(map(math.isfinite, series.values))
    return is_measured and not is_of_split(name, "test") and last != "images" and not last.startswith("best_")


def _run_chart(
    data: RunData, kind: str, group: dict[str, Series], name: str, per_epoch: float | None
) -> Chart:
    lines: list[Line] = []
    scale, averaged = per_epoch or 1.0, 1.0
    for metric, one in sorted(group.items(), key=lambda item: is_of_split(item[0], "val")):
        split = parse(metric).split
        x = downsample([step / scale for step in one.steps], MAX_POINTS)
        averaged = max(averaged, len(one.values) / len(x))
        label = SPLITS.get(split, metric)
        if label in {line.name for line in lines}:
            label = metric
        color = 1 if split == "val" else len(lines) + 1 if lines else 0
        lines.append(Line(label, x, downsample(one.values, MAX_POINTS), color=color))
    lost = sum(not math.isfinite(value) for one in group.values() for value in one.values)
    notes = [f"Each point is the mean of about {averaged:.0f} values."] if averaged > 1.5 else []
    notes += [f"Left out: {plural(lost, 'value')} that are NaN or infinite."] if lost else []
    return line_chart(
        TITLES.get(kind, kind),
        lines[::-1],
        name=name,
        x_label="epoch" if per_epoch else "step",
        marked=_best_epoch(data, scale)
        if kind == "loss" or any(is_of_split(one, "val") for one in group)
        else None,
        note=" ".join(notes),
        may_be_log=kind == "grad_norm" or is_smaller_better(kind),
    )


def _best_epoch(data: RunData, scale: float) -> tuple[float, str] | None:
    place = data.best_index()
    if place is None or len((monitored := data.series[data.monitor]).values) < 2:
        return None
    return monitored.steps[place] / scale, f"best, epoch {monitored.epochs[place] + 1:.0f}"


def curves_chart(comparison: Comparison) -> Chart | None:
    """Draw the learning curves of all points, the best ones in color; None without curves."""
    metric, axis, lines = curve_lines(comparison)
    short = []
    for line in lines[:MAX_LINES]:
        means, stds = (downsample(values, MAX_POINTS_OF_MANY) for values in (line.y, line.std))
        x = downsample(line.x, MAX_POINTS_OF_MANY)
        short.append(replace(line, name=shorten(line.name, 64, keep="start"), x=x, y=means, std=stds))
    if not short:
        return None
    larger_is_better = not is_smaller_better(metric)
    if metric == comparison.by:
        larger_is_better = comparison.larger_is_better
    y_range, outside = runs_that_matter(short, larger_is_better=larger_is_better)
    count, stopped = len(comparison.points), len(stopped_early(comparison))
    notes = [f"The best {len(COLORS)} are colored, the others gray."] if count > len(COLORS) else []
    if stopped:
        notes.append(
            f"Gray, up to their last epoch: {plural(stopped, 'run')} that the search pruned or paused."
        )
    if len(lines) > MAX_LINES:
        notes.append(f"Drawn: {MAX_LINES} of {len(lines)} curves, the best points first.")
    if outside:
        verb = "leaves" if len(outside) == 1 else "leave"
        notes.append(
            f"The scale is that of the runs that did not diverge; {plural(len(outside), 'curve')} {verb} it."
        )
    if any(any(line.std) for line in short):
        notes.append("Bands: ± one sample standard deviation over seeds and folds.")
    return line_chart(
        metric,
        short,
        name="curves",
        x_label=axis,
        note=" ".join(notes),
        may_be_log=not larger_is_better,
        is_wide=True,
        y_range=y_range,
    )


def parallel_chart(comparison: Comparison, log_keys: Collection[str] = ()) -> Chart | None:
    """Draw the parallel coordinates of all points; None if no key differs.

    `log_keys` are the keys whose search space is logarithmic.
    """
    points = comparison.points[:MAX_LINES]
    scales = parallel_axes(replace(comparison, points=points), MAX_KEYS, log_keys)
    if len(scales) < 2 or len(points) < 2:
        return None
    values = [f"{comparison.by} {point.score(comparison.by)}" for point in points]
    titles = [f"rank {number + 1}: {value}" for number, value in enumerate(values)]
    left_out = len(comparison.shown.leading) - len(scales) + 1
    count = len(comparison.points)
    notes = [f"The best {len(COLORS)} are colored as in the curves."] if len(points) > len(COLORS) else []
    notes += [f"Without an axis: {plural(left_out, 'key')} that also differ."] if left_out > 0 else []
    notes += [f"Drawn: the best {MAX_LINES} of {count} points."] if count > MAX_LINES else []
    title = f"Keys and the resulting {comparison.by}"
    with figure_style(font__size=12):
        axes = make_axes(WIDE, WIDE_HEIGHT, (80, 90, 46, 10))
        draw_parallel(axes, scales, titles)
        svg = to_svg(axes, "parallel", f"{title}: one line per point", class_="parallel")
    return Chart(title, Markup(svg), note=" ".join(notes), is_wide=True)  # noqa: S704 (escaped there)
