"""What an evaluation leaves as files that programs read: JSON, and CSV of single images."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from project.inference.evaluate.metrics import Predictions, reliability
from project.runtime.csv_cells import escape_all
from project.runtime.text import printable

OF_CLASSES = ("precision", "recall", "f1")
Intervals = Mapping[str, tuple[Tensor, Tensor]]


def figures_of(measured: Mapping[str, Tensor], intervals: Intervals) -> dict[str, Any]:
    """Figures with their bounds, as the JSON has them; `loss` of the run's own path is put in by the caller.

    Args:
        measured: by `measures.measured`.
        intervals: by `measures.intervals`, or nothing.

    Returns:
        For each figure of all images together `{value, low, high}`; without `low` and `high` if there are
        no intervals.
    """
    found = {}
    for name, value in measured.items():
        if value.ndim == 0:
            found[name] = _with_bounds(value, intervals.get(name))
    return found


def classes_of(
    measured: Mapping[str, Tensor], intervals: Intervals, names: Sequence[str]
) -> list[dict[str, Any]]:
    """For each class `class`, `images`, and of `precision`, `recall` and `f1` the value and its bounds."""
    rows = []
    for number, name in enumerate(names):
        row: dict[str, Any] = {"class": name, "images": int(measured["support"][number])}
        for key in OF_CLASSES:
            bounds = intervals.get(key)
            ends = None if bounds is None else (bounds[0][number], bounds[1][number])
            row[key] = _with_bounds(measured[key][number], ends)
        rows.append(row)
    return rows


def calibration_of(predictions: Predictions) -> list[dict[str, Any]]:
    """For each bin of confidence `images`, mean `confidence` and `accuracy`, null if it is empty."""
    bins = reliability(predictions)
    return [
        {
            "images": images,
            "confidence": confidence if images else None,
            "accuracy": accuracy if images else None,
        }
        for images, confidence, accuracy in zip(
            bins["images"].tolist(), bins["confidence"].tolist(), bins["accuracy"].tolist(), strict=True
        )
    ]


def confusion_of(predictions: Predictions) -> list[list[int]]:
    """The confusion matrix without its zeros: `[class, class chosen, images]` each."""
    matrix = predictions.confusion()
    cells = torch.nonzero(matrix)
    found: list[list[int]] = torch.cat([cells, matrix[cells[:, 0], cells[:, 1], None]], dim=1).tolist()
    return found


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write JSON that is one: what is no number is null."""
    file.write_text(json.dumps(_finite(content), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_predictions(
    file: Path, predictions: Predictions, names: Sequence[str], rows: Tensor, files: Sequence[str] | None
) -> None:
    """Write a row an image: its place in the split, the file it is from if any, its class, the class chosen
    and that one's probability, whether it is right, and the true class's probability.

    Args:
        file: of CSV.
        predictions: of N images.
        names: of the classes.
        rows: numbers (N,) of the images in the data set's images.
        files: of the images, or None.
    """
    own = predictions.probabilities.gather(1, predictions.labels[:, None])[:, 0]
    header = ["index", "row", "label", "prediction", "probability", "right", "label_probability"]
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header if files is None else [*header, "file"])
        columns = zip(
            rows.tolist(),
            predictions.labels.tolist(),
            predictions.chosen.tolist(),
            predictions.confidence.tolist(),
            predictions.right.tolist(),
            own.tolist(),
            strict=True,
        )
        for index, (row, label, chosen, sure, right, probability) in enumerate(columns):
            cells = [index, row, names[label], names[chosen], f"{sure:.6g}", int(right), f"{probability:.6g}"]
            writer.writerow(escape_all(cells if files is None else [*cells, printable(files[index])]))


def _with_bounds(value: Tensor, ends: tuple[Tensor, Tensor] | None) -> dict[str, float]:
    found = {"value": float(value)}
    return found if ends is None else found | {"low": float(ends[0]), "high": float(ends[1])}


def _finite(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node
