"""Output files of an evaluation (JSON, CSV, figures) and their folder, which is replaced atomically."""

import csv
import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from project.datamodules.base import Subset
from project.errors import InputError
from project.inference.evaluate.metrics import Predictions, reliability
from project.modules.classifier import probability_columns
from project.runtime.csv_files import escape_all
from project.runtime.output_files import missing_folders, refuse_unwritable_output
from project.runtime.text import printable

FOLDER = "evaluation"
RESULT = "evaluation.json"
PREDICTIONS = "predictions.csv"
FIGURES = ("confusion_matrix.png", "reliability.png", "worst_mistakes.png")
OWN_FILES = (RESULT, PREDICTIONS, *FIGURES)
MAX_NAME_PART = 60
MAX_MISTAKES = 40
MISTAKE_TILE, MISTAKE_COLUMNS = 150, 6
"""Width of a drawn mistake, pixels, and mistakes per row."""


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
    return join_name(parts)


def join_name(parts: Sequence[str]) -> str:
    """Join words to the name of a folder, without characters that file systems or shells treat specially."""
    plain = (re.sub(r"[^\w.+-]+", "_", part).strip("._-")[:MAX_NAME_PART] for part in parts)
    return "-".join(part or "other" for part in plain)


def combined_name(name: str, combined: str, members: Sequence[str]) -> str:
    """Name the evaluation of several networks that are `combined` in a way: `test-ensemble_of_3-1f09c2`."""
    digest = hashlib.sha256("\0".join(members).encode(errors="surrogateescape")).hexdigest()[:6]
    return f"{name}-{combined}_{len(members)}-{digest}"


@contextmanager
def replacing_folder(
    target: Path, *, is_given: bool, known: Sequence[str] = OWN_FILES, kind: str = "an evaluation"
) -> Iterator[Path]:
    """Yield a temporary folder, which replaces the target on success and is removed on an error.

    Args:
        target: the folder; one with the first of the known files may be replaced.
        is_given: the user named the folder.
        known: names of the files that the folder may contain.
        kind: kind of output, for messages.

    Raises:
        InputError: the folder contains other files, or cannot be written.
    """
    remedy = "give another folder" if is_given else "give another folder with output=FOLDER"
    if other := _unrelated_file(target, known):
        raise InputError(f"output={target}: contains {other}, which is not part of {kind}; {remedy}")
    refuse_unwritable_output(f"output={target}", target, folder=True, remedy=remedy)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    with missing_folders(target.parent):
        try:
            partial.mkdir()
            yield partial
            _move_into_place(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _unrelated_file(target: Path, parts: Sequence[str]) -> str:
    """Return the name of a file that is not part of an earlier output, or an empty string."""
    names = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    known = parts if parts[0] in names else ()
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
    """Write a CSV file with one row per image.

    Columns: file (of a data set of files), index in the split, row in the data set, label, prediction and its
    probability, correctness, probability of the label, loss (if the training loss is a mean over images), and
    of up to `MAX_PROBABILITY_COLUMNS` classes the probability of each.
    """
    label_probability = predictions.probabilities.gather(1, predictions.labels[:, None])[:, 0]
    columns: dict[str, Iterable[Any]] = {}
    if files is not None:
        columns["file"] = [printable(name) for name in files[: len(rows)]]
    columns |= {
        "index": range(len(rows)),
        "row": rows.tolist(),
        "label": [names[label] for label in predictions.labels.tolist()],
        "prediction": [names[label] for label in predictions.predicted.tolist()],
        "probability": predictions.confidence.tolist(),
        "correct": predictions.is_correct.int().tolist(),
        "label_probability": label_probability.tolist(),
    }
    if predictions.losses is not None:
        columns["loss"] = predictions.losses.tolist()
    write_columns(file, columns | probability_columns(predictions.probabilities, names))


def write_columns(file: Path, columns: Mapping[str, Iterable[Any]]) -> None:
    """Write a CSV file of columns by name, numbers with six significant digits."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(escape_all(map(printable, columns)))
        for row in zip(*columns.values(), strict=True):
            writer.writerow(
                escape_all(float(f"{cell:.6g}") if isinstance(cell, float) else cell for cell in row)
            )


def describe_mistakes(
    predictions: Predictions, names: Sequence[str], files: Sequence[str] | None
) -> list[dict[str, Any]]:
    """Return the most confident mistakes: index, file, label, prediction, probability and loss."""
    rows = []
    for number in worst_mistakes(predictions).tolist():
        row: dict[str, Any] = {"index": number}
        row |= {} if files is None else {"file": printable(files[number])}
        row |= {
            "label": names[int(predictions.labels[number])],
            "prediction": names[int(predictions.predicted[number])],
            "probability": float(predictions.confidence[number]),
        }
        row |= {} if predictions.losses is None else {"loss": float(predictions.losses[number])}
        rows.append(row)
    return rows


def draw_figures(
    folder: Path,
    predictions: Predictions,
    part: Subset,
    names: Sequence[str],
    title: str,
    files: Sequence[str] | None = None,
) -> list[str]:
    """Draw a confusion matrix, a reliability diagram and, if any, the most confident mistakes.

    The mistakes have the names of their files, or their indices in the split.
    """
    from project.figures import confusion_matrix, contact_sheet, reliability_diagram
    from project.figures.contact_sheet import mistake_captions

    bins = {name: values.numpy() for name, values in reliability(predictions).items()}
    pictures = [
        confusion_matrix(predictions.confusion().numpy(), names, title=title),
        reliability_diagram(bins["confidence"], bins["accuracy"], bins["images"]),
    ]
    if len(worst := worst_mistakes(predictions)):
        images = part.images.sample(part.rows[worst])
        if images.shape[1] not in (1, 3):
            images = images.float().mean(1, keepdim=True).to(torch.uint8)
        columns = (predictions.labels, predictions.predicted, predictions.confidence)
        rows = zip(worst.tolist(), *(column[worst].tolist() for column in columns), strict=True)
        captions = mistake_captions(rows, names, files, width=MISTAKE_TILE)
        heading = "Most confident mistakes: true → predicted (probability)"
        sheet = contact_sheet(
            images.numpy(), captions, columns=MISTAKE_COLUMNS, tile=MISTAKE_TILE, title=heading
        )
        pictures.append(sheet)
    files = list(FIGURES[: len(pictures)])
    for name, picture in zip(files, pictures, strict=True):
        picture.save(folder / name, optimize=True)
    return files


def worst_mistakes(predictions: Predictions) -> Tensor:
    """Return the positions (n,) of the 40 most confident mistakes, in descending order."""
    wrong = torch.nonzero(~predictions.is_correct).flatten()
    order = predictions.confidence[wrong].argsort(descending=True, stable=True)
    return wrong[order][:MAX_MISTAKES]
