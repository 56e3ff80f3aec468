"""What came out of a run: cards with its numbers, and what evaluations found."""

from pathlib import Path
from typing import Any

from project.reporting.html.curves import best_value
from project.reporting.html.evaluated import accuracy_interval, read_evaluations
from project.reporting.html.html import Markup, element, join
from project.reporting.html.reading import RunStory
from project.reporting.html.tables import Cell, table
from project.reporting.html.wording import metric, percent
from project.runs.metric_titles import TITLES
from project.runtime.text import duration

MOST_ROWS = 200
"""Of a table of classes."""
MOST_COLUMNS = 10
SHARES = ("accuracy", "acc", "precision", "recall", "f1", "ece")
"""Ends of the names of figures that are shares of 1."""
NAMES = TITLES | {"f1": "F1"}
"""Of figures, and of columns of the table of classes."""


def cards(story: RunStory) -> Markup:
    """The numbers to be seen first."""
    numbers, shown = story.metrics, []
    if "test/acc" in numbers:
        share, count = numbers["test/acc"], numbers.get("test/images")
        below = ""
        if (interval := accuracy_interval(story)) is not None:
            below = f"{100 * interval[0]:.2f} to {percent(interval[1])}"
            below += f", of {count:,.0f} images" if count else ""
        shown.append(_card("test accuracy", metric("test/acc", share), below, main=True))
    if "val/acc" in numbers:
        count = numbers.get("val/images")
        below = f"of {count:,.0f} images" if count else ""
        shown.append(_card("validation accuracy", metric("val/acc", numbers["val/acc"]), below))
    if "test/loss" in numbers:
        below = f"validation {metric('val/loss', numbers['val/loss'])}" if "val/loss" in numbers else ""
        shown.append(_card("test loss", metric("test/loss", numbers["test/loss"]), below))
    if story.monitor in numbers and not story.monitor.startswith(("test/", "val/acc", "val/loss")):
        shown.append(_card(story.monitor, metric(story.monitor, numbers[story.monitor]), "watched"))
    if not numbers and (best := best_value(story)) is not None:
        shown.append(_card(story.monitor, metric(story.monitor, best), "the best so far"))
    if story.epochs:
        weights = story.status.get("weights")
        below = f"{weights} weights count" if weights and numbers else ""
        shown.append(_card("epochs", str(story.epochs), below))
    if story.duration is not None:
        shown.append(_card("duration", duration(story.duration), _pace(story)))
    if story.parameters:
        shown.append(_card("parameters", f"{story.parameters:,}", story.class_of("model")))
    return element("div", shown, class_="cards numbers") if shown else join()


def _pace(story: RunStory) -> str:
    return f"{duration(story.duration / story.epochs)} an epoch" if story.epochs and story.duration else ""


def _card(name: str, value: str, below: str = "", *, main: bool = False) -> Markup:
    return element(
        "div",
        element("span", name, class_="label"),
        element("strong", value),
        element("span", below, class_="dim") if below else None,
        class_="card main" if main else "card",
    )


def evaluations(folder: Path) -> Markup | None:
    """Figures and classes of a run's evaluations, a part each; None where there are none."""
    parts = [
        join(element("h3", name), part)
        for name, found in read_evaluations(folder)
        if (part := _evaluation(found))
    ]
    return join(parts) if parts else None


def _evaluation(found: dict[str, Any]) -> Markup | None:
    """A table of figures beside one of classes."""
    figures = found.get("figures")
    parts = []
    if isinstance(figures, dict) and (
        rows := [row for name in figures if (row := _row(name, figures[name]))]
    ):
        bounded = any(row[2].content for row in rows)
        head = ["figure", "value", "95 % interval"][: 3 if bounded else 2]
        parts.append(table(head, [row[: len(head)] for row in rows], caption=_told(found)))
    classes = found.get("classes")
    if isinstance(classes, list) and (records := [one for one in classes if isinstance(one, dict)]):
        parts.append(_class_table(records))
    return element("div", parts, class_="tables") if parts else None


def _told(found: dict[str, Any]) -> str:
    """What was evaluated, in a few words."""
    images = found.get("images")
    parts = [str(found[key]) for key in ("data", "split") if found.get(key)]
    parts += [f"{images:,} images"] if isinstance(images, int) else []
    parts += [f"views {found['views']}"] if found.get("views") not in (None, "none") else []
    parts += [str(found["checkpoint"])] if found.get("checkpoint") else []
    return ", ".join(parts) or "Of all images together"


def _row(name: str, figure: Any) -> list[Cell] | None:
    value = _value(figure)
    if value is None:
        return None
    bounds = [_value(figure.get(end)) for end in ("low", "high")] if isinstance(figure, dict) else []
    words = [_shown(name, bound) for bound in bounds if bound is not None]
    interval = f"{words[0].removesuffix(' %')} to {words[1]}" if len(words) == 2 else ""
    title = NAMES.get(name, name.replace("_", " "))
    return [Cell(title), Cell(_shown(name, value), value, number=True), Cell(interval)]


def _value(figure: Any) -> float | None:
    """A figure's value, given as `{value, low, high}` or as a plain number."""
    value = figure.get("value") if isinstance(figure, dict) else figure
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _shown(name: str, value: float) -> str:
    return percent(value) if name.endswith(SHARES) else metric(name, value)


def _class_table(records: list[dict[str, Any]]) -> Markup:
    records = records[:MOST_ROWS]
    head = list(dict.fromkeys(str(key) for record in records for key in record))[:MOST_COLUMNS]
    rows = []
    for record in records:
        row = []
        for key in head:
            content = record.get(key)
            value = _value(content)
            if value is None:
                row.append(Cell(content if isinstance(content, str) else ""))
            else:
                row.append(Cell(_shown(key, value), value, number=True))
        rows.append(row)
    return table([NAMES.get(key, key) for key in head], rows, caption="Each class")
