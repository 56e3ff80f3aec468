"""What came out of a run: cards with its numbers, and what evaluations found."""

import json
import math
from pathlib import Path
from typing import Any

from project.report.figures import EVALUATION
from project.report.html import Markup, element, join
from project.report.reading import Story
from project.report.tables import Cell, table
from project.report.wording import is_share, metric, percent, wilson
from project.wording import duration

MOST_ROWS = 200
"""Of a table of classes."""


def cards(story: Story) -> Markup:
    """The numbers to be seen first."""
    numbers, shown = story.metrics, []
    if "test/acc" in numbers:
        share, count = numbers["test/acc"], numbers.get("test/images")
        below = ""
        if count and math.isfinite(share):
            low, high = wilson(share, count)
            below = f"{100 * low:.2f} to {percent(high)}, of {count:,.0f} images"
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
    if story.epochs:
        weights = story.status.get("weights")
        below = f"{weights} weights count" if weights else ""
        shown.append(_card("epochs", str(story.epochs), below))
    if story.duration is not None:
        shown.append(_card("duration", duration(story.duration), _pace(story)))
    if story.parameters:
        shown.append(_card("parameters", f"{story.parameters:,}", story.class_of("model")))
    return element("div", shown, class_="cards numbers") if shown else join()


def _pace(story: Story) -> str:
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
    """Numbers and tables of a run's evaluations, None where there are none."""
    parts = []
    for file in sorted((folder / EVALUATION).rglob("*.json")):
        try:
            found = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(found, dict) and (part := _evaluation(found)):
            name = str(file.relative_to(folder / EVALUATION).with_suffix("")).removesuffix("/metrics")
            parts.append(join(element("h3", name.replace("_", " ").replace("/", ", ")), part))
    return join(parts) if parts else None


def _evaluation(found: dict[str, Any]) -> Markup | None:
    numbers = _numbers(found)
    intervals = found.get("intervals") if isinstance(found.get("intervals"), dict) else {}
    assert intervals is not None
    rows = [
        [
            Cell(name),
            Cell(metric(name, value), value, number=True),
            Cell(_interval(name, intervals.get(name))),
        ]
        for name, value in numbers.items()
    ]
    if not any(row[2].content for row in rows):
        rows = [row[:2] for row in rows]
    head = ["metric", "value", "95 % interval"][: len(rows[0])] if rows else []
    parts = [table(head, rows, caption="Of the whole split")] if rows else []
    for name, value in found.items():
        if classes := _records(value):
            parts.append(_class_table(name, classes))
    return element("div", parts, class_="tables") if parts else None


def _numbers(found: dict[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation: at its top, or within `metrics`."""
    inner = found.get("metrics")
    every = {**found, **(inner if isinstance(inner, dict) else {})}
    return {
        str(name): float(value)
        for name, value in every.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _interval(name: str, bounds: Any) -> str:
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        return ""
    try:
        low, high = map(float, bounds)
    except (TypeError, ValueError):
        return ""
    return f"{metric(name, low).removesuffix(' %')} to {metric(name, high)}"


def _records(value: Any) -> list[dict[str, Any]]:
    """A table's rows: a list of dicts, or a dict of them by class."""
    if isinstance(value, dict) and value and all(isinstance(one, dict) for one in value.values()):
        return [{"class": name, **one} for name, one in value.items()]
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        return value
    return []


def _class_table(name: str, records: list[dict[str, Any]]) -> Markup:
    head = list(dict.fromkeys(str(key) for record in records[:MOST_ROWS] for key in record))[:10]
    shares = {"precision", "recall", "f1", "accuracy", "acc"}
    rows = []
    for record in records[:MOST_ROWS]:
        row = []
        for key in head:
            value = record.get(key, "")
            if isinstance(value, int | float) and not isinstance(value, bool):
                words = percent(value) if key in shares or is_share(key) else metric(key, value)
                row.append(Cell(words, value, number=True))
            else:
                row.append(Cell(value if isinstance(value, str) else json.dumps(value)))
        rows.append(row)
    return table(head, rows, caption=name.replace("_", " ").capitalize())
