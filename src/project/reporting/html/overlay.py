"""The learning curves of a sweep's points over each other."""

from project.reporting.compare.curves import read_curves
from project.reporting.html.axes import thinned
from project.reporting.html.charts import Line, line_chart
from project.reporting.html.html import Markup, element
from project.reporting.html.wording import is_share
from project.runs.collect import Comparison
from project.runs.hparam_diff import short_names
from project.runs.table import RESERVED, shorten

NAMED = 8
"""Points that have a colour and a name, the best ones."""
MOST_LINES = 400
MOST_POINTS = 60
LONGEST = 48
"""Characters of a name in the legend."""


def overlay(ranked: Comparison) -> Markup:
    """Draw how the metric went for every point, the mean over its runs; the best ones in colours."""
    metric, axis, curves = read_curves(ranked)
    lines = []
    for number, curve in enumerate(curves[:MOST_LINES]):
        if not curve.x:
            continue
        xs, ys = thinned(curve.x, curve.mean, MOST_POINTS)
        _, spread = thinned(curve.x, curve.std, MOST_POINTS)
        named = number < NAMED
        lines.append(
            Line(
                _name(ranked, number),
                xs,
                ys,
                colour=number if named else None,
                spread=spread if named and any(spread) else (),
                dashed=named and number >= NAMED // 2,
            )
        )
    if not lines:
        return element("p", "No curves have been logged.", class_="empty")
    notes = []
    if len(curves) > NAMED:
        notes.append(f"The best {NAMED} have colours; the others are grey.")
    if any(line.spread for line in lines):
        notes.append("Bands: one sample standard deviation over seeds and folds to either side.")
    title = {"acc": "accuracy", "loss": "loss"}.get(metric.rpartition("/")[2], metric.rpartition("/")[2])
    split = {"val": "Validation ", "train": "Training "}.get(metric.partition("/")[0], "")
    return line_chart(
        f"{split}{title}".capitalize(),
        lines,
        x_name=axis,
        note=" ".join(notes),
        may_be_log="loss" in metric,
        percent=is_share(metric),
        wide=True,
    )


def _name(ranked: Comparison, number: int) -> str:
    """A point by its rank and the values that tell it from others."""
    run = ranked.points[number].runs[0]
    keys = ranked.shown.told + (ranked.shown.repetitions if ranked.each else [])
    names = short_names(keys, RESERVED)
    values = [f"{names[key]}={ranked.shown.texts([run], key)[0]}" for key in keys]
    return shorten(f"{number + 1}. {' '.join(values) or run.folder.name}", LONGEST, keep="start")
