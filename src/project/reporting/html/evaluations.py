"""Tables of the evaluations and exports of a run, read from their JSON files."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from project.reporting.html.tables import Cell, Table, format_metric, number_cell
from project.reporting.run_data import RunData, as_mapping
from project.runs.intervals import wilson
from project.runs.results import METRIC_TITLES, is_number

EVALUATION, EXPORT = "evaluation", "export"
"""Subfolders of a run folder."""
MAX_JSON_BYTES = 2**25
MAX_ROWS, MAX_COLUMNS = 200, 10
"""Maximum size of the table of classes."""
ACCURACY_TOLERANCE = 1e-6
"""Maximum difference of the same accuracy in two files, by rounding."""
NAMES = METRIC_TITLES | {"f1": "F1"}


def evaluation_files(folder: Path, ending: str) -> Iterator[Path]:
    """Yield the files of a run's evaluations; hidden folders hold unfinished evaluations and are skipped."""
    place = folder / EVALUATION
    for file in place.rglob(f"*{ending}"):
        if not any(part.startswith(".") for part in file.relative_to(place).parts):
            yield file


def _read_json(files: Iterator[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield JSON files with their content; damaged and very large files are skipped."""
    for file in sorted(files):
        try:
            found = json.loads(file.read_bytes()) if file.stat().st_size <= MAX_JSON_BYTES else None
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            yield file, found


def read_evaluations(folder: Path) -> list[tuple[str, list[Table]]]:
    """Return the name and the tables of each evaluation of a run: overall metrics, metrics per class."""
    evaluations = []
    for file, found in _read_json(evaluation_files(folder, ".json")):
        name = file.parent.name if file.parent.name != EVALUATION else file.stem
        tables = [_metrics_table(found), _classes_table(found)]
        if known := [table for table in tables if table]:
            evaluations.append((name.replace("_", " "), known))
    return evaluations


def _metrics_table(found: Mapping[str, Any]) -> Table | None:
    rows = []
    for name, figure in as_mapping(found.get("figures")).items():
        if (value := _value(figure)) is not None:
            bounds = [_value(as_mapping(figure).get(end)) for end in ("low", "high")]
            words = [format_metric(bound) for bound in bounds if bound is not None]
            title = NAMES.get(name, name.replace("_", " "))
            rows.append([Cell(title), number_cell(value, format_metric), Cell(" to ".join(words))])
    if not rows:
        return None
    images = found.get("images")
    parts = [str(found[key]) for key in ("data", "split") if found.get(key)]
    parts += [f"{images:,} images"] if isinstance(images, int) else []
    parts += [f"tta {found['tta']}"] if found.get("tta") not in (None, "none") else []
    parts += [str(found["checkpoint"])] if found.get("checkpoint") else []
    return Table(", ".join(parts) or "All images", ["metric", "value", "95 % interval"], rows)


def _classes_table(found: Mapping[str, Any]) -> Table | None:
    classes = found.get("classes")
    records = [one for one in classes if isinstance(one, dict)] if isinstance(classes, list) else []
    if not records:
        return None
    head = list(dict.fromkeys(str(key) for record in records for key in record))[:MAX_COLUMNS]
    rows = []
    for record in records[:MAX_ROWS]:
        row = []
        for key in head:
            content = record.get(key)
            value = _value(content)
            text = content if isinstance(content, str) else ""
            row.append(Cell(text) if value is None else number_cell(value, format_metric))
        rows.append(row)
    return Table("Metrics per class", [NAMES.get(key, key) for key in head], rows)


def _value(figure: Any) -> float | None:
    """Return the value of an entry `{value, low, high}`, or a plain number; None for anything else."""
    value = figure.get("value") if isinstance(figure, dict) else figure
    return float(value) if is_number(value) else None


def accuracy_interval(data: RunData) -> tuple[float, float] | None:
    """Return the 95 % interval of the test accuracy; None if the number of images is not recorded.

    The interval of an evaluation with the same accuracy takes precedence over Wilson's, so that a page shows
    only one interval of one accuracy.
    """
    accuracy, count = data.metrics.get("test/acc"), data.metrics.get("test/images")
    if accuracy is None or not math.isfinite(accuracy):
        return None
    for _, found in _read_json(evaluation_files(data.run.path, ".json")):
        figure = as_mapping(as_mapping(found.get("figures")).get("accuracy"))
        value, low, high = (_value(figure.get(key)) for key in ("value", "low", "high"))
        if found.get("split") != "test" or found.get("combined") or value is None:
            continue
        if low is not None and high is not None and abs(value - accuracy) <= ACCURACY_TOLERANCE:
            return low, high
    return wilson(accuracy, count) if count else None


def read_exports(folder: Path) -> list[Table]:
    """Return a table of variants for each export format of a run."""
    tables = []
    for _, found in _read_json((folder / EXPORT).glob("*.json")):
        variants = found.get("variants")
        known = [one for one in variants if isinstance(one, dict)] if isinstance(variants, list) else []
        if known:
            tables.append(_variants_table(found, known))
    return tables


def _variants_table(found: Mapping[str, Any], variants: list[dict[str, Any]]) -> Table:
    times = [as_mapping(one.get("ms")) for one in variants]
    batches = list(dict.fromkeys(str(batch) for one in times for batch in one))
    rows = []
    for one, measured in zip(variants, times, strict=True):
        medians = [as_mapping(measured.get(batch)).get("median", measured.get(batch)) for batch in batches]
        rows.append(
            [
                Cell(str(one.get("name", ""))),
                Cell(str(one.get("file") or "")),
                number_cell(one.get("bytes") or None, lambda size: f"{size / 1e6:.3g} MB"),
                number_cell(one.get("accuracy"), format_metric),
                number_cell(one.get("largest_difference"), lambda value: f"{value:.2g}"),
                *(number_cell(median, lambda value: f"{value:.3g} ms") for median in medians),
            ]
        )
    head = ["variant", "file", "size", "accuracy", "largest difference"]
    head += [f"batch of {batch}" for batch in batches]
    parts = [str(found["format"])] if found.get("format") else []
    parts += [f"accuracy on {found['test_images']} test images"] if found.get("test_images") else []
    parts += [f"median times with {found['threads']} threads"] if found.get("threads") else []
    return Table(", ".join(parts) or "Exported", head, rows)
