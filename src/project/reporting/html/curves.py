"""Which charts tell how a run went."""

import math
from collections.abc import Mapping

from project.reporting.html.axes import short, thinned
from project.reporting.html.charts import Line, line_chart
from project.reporting.html.html import Markup, element, join
from project.reporting.html.reading import RunStory, Series
from project.runs.table import plural

MOST_POINTS = 300
"""Of a line; neighbours are averaged beyond that."""
MOST_CHARTS = 8
"""That are open to be seen; the others are folded."""
SPLITS = ("train", "val")
COUNTS = ("images",)
"""Last parts of what is no curve that anybody looks at."""
KINDS = {
    "loss": "Loss",
    "acc": "Accuracy",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "images_per_s": "Throughput, images per second",
    "memory_gb": "GPU memory, GB",
}
"""Titles of the charts, in their order."""
SHARES = ("acc",)
MARKED = ("loss", "acc")
"""Charts in which the best epoch is marked."""
LOG = ("loss", "grad_norm")


def run_charts(story: RunStory) -> Markup:
    """Charts of all that a run logged more than once: training and validation of the same kind on one."""
    series = {name: one for name, one in story.series.items() if _is_curve(name, one)}
    if not series:
        return element("p", "Nothing has been logged more than once: there are no curves.", class_="empty")
    kinds: dict[str, dict[str, Series]] = {}
    for name, one in series.items():
        split, _, kind = name.partition("/")
        key = kind if split in SPLITS and kind else name
        kinds.setdefault(key if key in KINDS else _known(key), {})[name] = one
    order = [*(kind for kind in KINDS if kind in kinds), *sorted(kind for kind in kinds if kind not in KINDS)]
    steps_per_epoch = find_steps_per_epoch(series)
    best = best_step(story)
    drawn, constant = [], []
    for kind in order:
        if kind not in SHARES and all(_is_constant(one) for one in kinds[kind].values()):
            constant.append(
                f"{_title(kind)}: {short(next(iter(kinds[kind].values())).values[0])} throughout."
            )
        else:
            drawn.append(_chart(kind, kinds[kind], steps_per_epoch, best))
    return join(
        element("div", drawn[:MOST_CHARTS], class_="grid-2") if drawn else None,
        element(
            "details",
            element("summary", f"{len(drawn) - MOST_CHARTS} more charts"),
            element("div", drawn[MOST_CHARTS:], class_="grid-2"),
        )
        if len(drawn) > MOST_CHARTS
        else None,
        element("p", " ".join(constant), class_="note") if constant else None,
    )


def _is_curve(name: str, series: Series) -> bool:
    """Whether it was logged more than once; a test is one number a run, and `epoch` is an axis."""
    several = len(series.values) > 1 and any(map(math.isfinite, series.values))
    last = name.rpartition("/")[2]
    return several and not name.startswith("test/") and last not in COUNTS and not last.startswith("best_")


def _known(kind: str) -> str:
    last = kind.rpartition("/")[2]
    return last if last in KINDS and kind.count("/") == 1 else kind


def _title(kind: str) -> str:
    return KINDS.get(kind, kind)


def _is_constant(series: Series) -> bool:
    return min(series.values) == max(series.values)


def find_steps_per_epoch(series: Mapping[str, Series]) -> float | None:
    """Steps of an epoch, where all epochs have the same number of them, judged by the last value in each."""
    ends: dict[float, float] = {}
    for one in series.values():
        for step, epoch in zip(one.steps, one.epochs, strict=True):
            ends[epoch] = max(step, ends.get(epoch, 0.0))
    last = max(ends, default=-1.0)
    whole = {epoch: end for epoch, end in ends.items() if epoch < last} or ends
    sizes = [end / (epoch + 1) for epoch, end in whole.items()]
    if last < 1 or not sizes or min(sizes) <= 0 or max(sizes) > 1.02 * min(sizes):
        return None
    return max(sizes)


def best_step(story: RunStory) -> tuple[float, float] | None:
    """Step and epoch, counted from 1, at which the watched metric was best; None if that is not known."""
    watched = story.series.get(story.monitor)
    place = _best_place(story)
    if watched is None or place is None or len(watched.values) < 2:
        return None
    return watched.steps[place], watched.epochs[place] + 1


def best_value(story: RunStory) -> float | None:
    """The best value that the watched metric had in training; None if it never had one."""
    place = _best_place(story)
    return None if place is None else story.series[story.monitor].values[place]


def _best_place(story: RunStory) -> int | None:
    watched = story.series.get(story.monitor)
    sign = 1.0 if story.larger_is_better else -1.0
    values = watched.values if watched else []
    found = [(sign * value, -place) for place, value in enumerate(values) if math.isfinite(value)]
    return -max(found)[1] if found else None


def _chart(
    kind: str, group: Mapping[str, Series], steps_per_epoch: float | None, best: tuple[float, float] | None
) -> Markup:
    scale = steps_per_epoch or 1.0
    lines: list[Line] = []
    averaged = 1.0
    for name, one in sorted(group.items(), key=lambda item: item[0].startswith("val/")):
        split = name.partition("/")[0]
        xs, ys = thinned([step / scale for step in one.steps], one.values, MOST_POINTS)
        averaged = max(averaged, len(one.values) / len(xs))
        label = {"train": "training", "val": "validation"}.get(split, name)
        names = {line.name for line in lines}
        colour = 1 if split == "val" else len(lines) + 1 if lines else 0
        lines.append(Line(name if label in names else label, xs, ys, colour=colour))
    lost = sum(not math.isfinite(value) for one in group.values() for value in one.values)
    notes = [f"Each point is the mean of about {averaged:.0f} values."] if averaged > 1.5 else []
    notes += [f"Left out, for being no finite numbers: {plural(lost, 'value')}."] if lost else []
    return line_chart(
        _title(kind),
        lines[::-1],
        x_name="epoch" if steps_per_epoch else "step",
        marker=(best[0] / scale, f"best, epoch {best[1]:.0f}") if best and kind in MARKED else None,
        note=" ".join(notes),
        may_be_log=kind in LOG,
        percent=kind in SHARES,
    )
