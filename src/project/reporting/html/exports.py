"""What a run was exported as: each variant with its size, accuracy and speed."""

import json
import math
from pathlib import Path
from typing import Any

from project.reporting.html.html import Markup, element, join
from project.reporting.html.tables import Cell, table
from project.reporting.html.wording import percent

FOLDER = "export"
"""Within a run's, where exports are."""


def exports(folder: Path) -> Markup | None:
    """A table for each format that a run was exported to; None where there are none."""
    parts = []
    for file in sorted((folder / FOLDER).glob("*.json")):
        try:
            found = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        variants = found.get("variants") if isinstance(found, dict) else None
        if isinstance(variants, list) and (known := [one for one in variants if isinstance(one, dict)]):
            parts.append(_table(found, known))
    return element("div", join(parts), class_="tables wide") if parts else None


def _table(found: dict[str, Any], variants: list[dict[str, Any]]) -> Markup:
    times = [one["ms"] if isinstance(one.get("ms"), dict) else {} for one in variants]
    batches = list(dict.fromkeys(str(batch) for one in times for batch in one))
    rows = []
    for one, measured in zip(variants, times, strict=True):
        row = [Cell(str(one.get("name", ""))), Cell(str(one.get("file") or ""))]
        row += [_number(one.get("bytes") or None, 1e-6, "{:.3g} MB"), _number(one.get("accuracy"), 1.0, "")]
        row += [_number(one.get("largest_difference"), 1.0, "{:.2g}")]
        for batch in batches:
            timing = measured.get(batch)
            row.append(
                _number(timing.get("median") if isinstance(timing, dict) else timing, 1.0, "{:.3g} ms")
            )
        rows.append(row)
    head = [
        "variant",
        "file",
        "size",
        "accuracy",
        "largest difference",
        *(f"batch of {one}" for one in batches),
    ]
    told = [str(found["format"])] if found.get("format") else []
    told += [f"accuracy of {found['test_images']} test images"] if found.get("test_images") else []
    told += [f"times with {found['threads']} threads, medians"] if found.get("threads") else []
    return table(head, rows, caption=", ".join(told) or "Exported")


def _number(value: Any, scale: float, form: str) -> Cell:
    """A number in its form; without a form a share."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return Cell("", math.nan, number=True)
    return Cell(form.format(scale * value) if form else percent(value), value, number=True)
