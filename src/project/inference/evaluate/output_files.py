"""Output files of an evaluation (JSON, CSV, figures) and their folder, which is replaced atomically."""

import csv
import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from project.datamodules.base import Subset
from project.errors import InputError
from project.inference.evaluate.metrics import Predictions, reliability
from project.runtime.csv_files import escape_all
from project.runtime.output_files import missing_folders, refuse_unwritable_output
from project.runtime.text import printable

FOLDER = "evaluation"
RESULT = "evaluation.json"
PREDICTIONS = "predictions.csv"
FIGURES = ("confusion_matrix.png", "reliability.png", "worst_mistakes.png")
MAX_NAME_PART = 60
MAX_MISTAKES = 40


def evaluation_name(split: str, data: Sequence[str], tta: str | None, weights: str) -> str:
    """Name an evaluation after its options: `test`, `val-last`, `test-photos-tta_flip`."""
    parts = [split]
    for word in data:
        key, _, value = word.partition("=")
        if key == "data":
            parts.append(value)
        elif key == "data.path":
            parts.append(Path(value).name)
        elif key.startswith("data."):
            parts.append(f"{key.removeprefix('data.')}_{value}")
    if tta is not None:
        parts.append(f"tta_{tta}")
    if weights != "auto":
        parts.append(Path(weights).stem)
    plain = (re.sub(r"[^\w.+-]+", "_", part).strip("._-")[:MAX_NAME_PART] for part in parts)
    return "-".join(part or "other" for part in plain)


def combined_name(name: str, combined: str, members: Sequence[str]) -> str:
    """Name the evaluation of several combined networks: `test-ensemble_of_3-1f09c2`."""
    digest = hashlib.sha256("\0".join(members).encode(errors="surrogateescape")).hexdigest()[:6]
    return f"{name}-{combined}_of_{len(members)}-{digest}"


@contextmanager
def replacing_folder(target: Path, *, is_given: bool) -> Iterator[Path]:
    """Yield a temporary folder, which replaces the target on success and is removed on an error."""
    remedy = "give another folder" if is_given else "give another folder with output=FOLDER"
    if other := _unrelated_file(target):
        raise InputError(f"output={target}: contains {other}, which is no part of an evaluation; {remedy}")
    refuse_unwritable_output(f"output={target}", target, folder=True, remedy=remedy)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    with missing_folders(target.parent):
        try:
            partial.mkdir()
            yield partial
            _move_into_place(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _unrelated_file(target: Path) -> str:
    """Return the name of a file that is not part of an evaluation, or an empty string."""
    names = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    known = (RESULT, PREDICTIONS, *FIGURES) if RESULT in names else ()
    return next((name for name in names if name not in known), "")


def _move_into_place(partial: Path, target: Path) -> None:
    """Rename a folder; an earlier evaluation at the target is removed, or kept on an error."""
    while True:
        old = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
        with suppress(FileNotFoundError):  # there is none, or a concurrent evaluation moved it
            target.rename(old)
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():
                with suppress(OSError):
                    old.rename(target)
                raise
            # A concurrent evaluation was moved there first; its older result is replaced.
        shutil.rmtree(old, ignore_errors=True)
        if not partial.exists():
            return


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with null for NaN and infinity."""
    finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
    file.write_text(json.dumps(finite, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_predictions(
    file: Path, predictions: Predictions, names: Sequence[str], rows: Tensor, files: Sequence[str] | None
) -> None:
    """Write a CSV file with one row per image."""
    label_probability = predictions.probabilities.gather(1, predictions.labels[:, None])[:, 0]
    columns = {
        "index": range(len(rows)),
        "row": rows.tolist(),
        "label": [names[label] for label in predictions.labels.tolist()],
        "prediction": [names[label] for label in predictions.predicted.tolist()],
        "probability": [f"{value:.6g}" for value in predictions.confidence.tolist()],
        "correct": predictions.is_correct.int().tolist(),
        "label_probability": [f"{value:.6g}" for value in label_probability.tolist()],
    }
    if files is not None:
        columns["file"] = [printable(name) for name in files[: len(rows)]]
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(escape_all(row) for row in zip(*columns.values(), strict=True))


def draw_figures(
    folder: Path, predictions: Predictions, part: Subset, names: Sequence[str], title: str
) -> list[str]:
    """Draw a confusion matrix, a reliability diagram and, if any, the most confident mistakes."""
    from project.figures import confusion_matrix, contact_sheet, reliability_diagram

    bins = {name: values.numpy() for name, values in reliability(predictions).items()}
    pictures = [
        confusion_matrix(predictions.confusion().numpy(), names, title=title),
        reliability_diagram(bins["confidence"], bins["accuracy"], bins["images"]),
    ]
    if len(worst := worst_mistakes(predictions)):
        images = part.images.sample(part.rows[worst])
        if images.shape[1] not in (1, 3):
            images = images.float().mean(1, keepdim=True).to(torch.uint8)
        columns = (predictions.predicted, predictions.labels, predictions.confidence)
        rows = zip(worst.tolist(), *(column[worst].tolist() for column in columns), strict=True)
        captions = [
            f"{names[predicted]} {confidence:.2f}\nis {names[label]}\nno. {number}"
            for number, predicted, label, confidence in rows
        ]
        pictures.append(contact_sheet(images.numpy(), captions, title="Most confident mistakes"))
    files = list(FIGURES[: len(pictures)])
    for name, picture in zip(files, pictures, strict=True):
        picture.save(folder / name, optimize=True)
    return files


def worst_mistakes(predictions: Predictions) -> Tensor:
    """Return the positions (n,) of the 40 most confident mistakes, in descending order."""
    wrong = torch.nonzero(~predictions.is_correct).flatten()
    order = predictions.confidence[wrong].argsort(descending=True, stable=True)
    return wrong[order][:MAX_MISTAKES]
