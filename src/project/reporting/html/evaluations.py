"""Tables of the evaluations and exports of a run, read from their JSON files."""

import json
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from project.reporting.html.tables import Cell, Table, format_metric, number_cell
from project.reporting.run_data import as_mapping
from project.runs.intervals import Interval, wilson
from project.runs.results import METRIC_TITLES, is_number
from project.runtime.text import mistake_text, shorten

EVALUATION, EXPORT = "evaluation", "export"
"""Subfolders of a run folder."""
MAX_JSON_BYTES = 2**25
MAX_ROWS, MAX_COLUMNS = 1000, 10
"""Maximum size of the table of classes."""
MANY_CLASSES, FEW_CLASSES = 20, 10
"""Number of classes from which the table is folded, and number of those shown."""
MAX_NAME_LENGTH, MAX_FILE_LENGTH = 32, 48
"""Characters."""
ACCURACIES = ("accuracy", "top5_accuracy")
CLASS_SCORES = ("precision", "recall", "F1")
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
        tables = [_metrics_table(found), _mistakes_table(found), *_classes_tables(found)]
        if known := [table for table in tables if table]:
            evaluations.append((name.replace("_", " "), known))
    return evaluations


def _metrics_table(found: Mapping[str, Any]) -> Table | None:
    rows = []
    images = found.get("images")
    for name, figure in as_mapping(found.get("figures")).items():
        if (value := _value(figure)) is not None:
            bounds = _bounds(name, figure, images)
            title = NAMES.get(name, name.replace("_", " "))
            rows.append([Cell(title), number_cell(value, format_metric), Cell(_interval_text(bounds))])
    if not rows:
        return None
    parts = [str(found[key]) for key in ("data", "split") if found.get(key)]
    parts += [f"{images:,} images"] if isinstance(images, int) else []
    parts += [f"tta {found['tta']}"] if found.get("tta") not in (None, "none") else []
    parts += [str(found["checkpoint"])] if found.get("checkpoint") else []
    head = ["metric", "value", "95 % interval"]
    if not any(row[2].text for row in rows):
        head, rows = head[:2], [row[:2] for row in rows]
    return Table(", ".join(parts) or "All images", head, rows)


def _bounds(name: str, figure: Any, images: Any) -> Interval | None:
    """Return the interval of a metric: as recorded; Wilson's for accuracies, also of earlier evaluations.

    So an accuracy has the same interval everywhere on a page, before and after an evaluation.
    """
    value = _value(figure)
    is_fraction = name in ACCURACIES and is_number(images) and images >= 1
    if is_fraction and value is not None and 0 <= value <= 1:
        return wilson(value, images)
    low, high = (_value(as_mapping(figure).get(end)) for end in ("low", "high"))
    return None if low is None or high is None else (low, high)


def _interval_text(bounds: Interval | None) -> str:
    return " to ".join(map(format_metric, bounds)) if bounds else ""


def _classes_tables(found: Mapping[str, Any]) -> list[Table]:
    """Return the metrics per class; of many classes the worst, the best, and all in a folded table."""
    classes = found.get("classes")
    records = [one for one in classes if isinstance(one, dict)] if isinstance(classes, list) else []
    if not records:
        return []
    head = list(dict.fromkeys(str(key) for record in records for key in record))[:MAX_COLUMNS]
    titles = [NAMES.get(key, key) for key in head]
    has_interval = any(_bounds("", record.get("f1"), None) for record in records)
    rows = []
    for record in records[:MAX_ROWS]:
        row = []
        for key in head:
            content = record.get(key)
            value = _value(content)
            text = content if isinstance(content, str) else ""
            row.append(
                Cell(shorten(text, MAX_NAME_LENGTH), full=text if len(text) > MAX_NAME_LENGTH else "")
                if value is None
                else number_cell(value, format_metric)
            )
        row += [Cell(_interval_text(_bounds("", record.get("f1"), None)))] if has_interval else []
        rows.append(row)
    titles += ["F1, 95 % interval"] if has_interval else []
    larger_first = [title for title in titles if title in CLASS_SCORES]
    if len(rows) <= MANY_CLASSES or "f1" not in head:
        return [
            Table(
                "Metrics per class",
                titles,
                rows,
                larger_first=larger_first,
                page_rows=MANY_CLASSES,
                is_wide=has_interval,
            )
        ]
    place = head.index("f1")
    scored = [row for row in rows if row[place].order]
    scored.sort(key=lambda row: float(row[place].order))
    parts = {"lowest": scored[:FEW_CLASSES], "highest": scored[::-1][:FEW_CLASSES]}
    tables = [
        Table(
            f"The {len(part)} classes with the {kind} F1",
            titles,
            part,
            larger_first=larger_first,
            is_wide=True,
        )
        for kind, part in parts.items()
    ]
    count = f"the first {len(rows)} of {len(records)}" if len(rows) < len(records) else f"{len(rows)}"
    every = Table(
        "Metrics per class",
        titles,
        rows,
        larger_first=larger_first,
        folded=f"All {count} classes",
        is_wide=True,
    )
    return [*tables, every]


def _mistakes_table(found: Mapping[str, Any]) -> Table | None:
    """Return the most confident mistakes, by file or by index in the split."""
    mistakes = found.get("mistakes")
    records = [one for one in mistakes if isinstance(one, dict)] if isinstance(mistakes, list) else []
    if not records:
        return None
    has_files = any(record.get("file") for record in records)
    folders = [str(record.get("file") or "").split("/")[:-1] for record in records]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))
    common = "/".join(parts[0] for parts in shared)
    rows = []
    for record in records[:MAX_ROWS]:
        file, index = str(record.get("file") or ""), _value(record.get("index"))
        name = shorten(file.removeprefix(f"{common}/"), MAX_FILE_LENGTH, keep="end")
        probability = _value(record.get("probability"))
        form = mistake_text(record.get("label"), record.get("prediction"), probability)
        rows.append(
            [
                Cell(name, full=file if name != file else "")
                if has_files
                else number_cell(index, "{:.0f}".format),
                Cell(form, full=form),
                number_cell(_value(record.get("loss")), format_metric),
            ]
        )
    caption = "Most confident mistakes: true → predicted (probability)"
    caption += f"; files in {common}" if common else ""
    return Table(caption, ["file" if has_files else "index", "mistake", "loss"], rows, page_rows=10)


def _value(figure: Any) -> float | None:
    """Return the value of an entry `{value, low, high}`, or a plain number; None for anything else."""
    value = figure.get("value") if isinstance(figure, dict) else figure
    return float(value) if is_number(value) else None


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
