"""What evaluations of a run found, as their files tell it."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from project.reporting.html.reading import RunStory
from project.runs.ranking import wilson

EVALUATION = "evaluation"
"""Folder within a run's, with what was found out about it after training."""
LARGEST_RECORD = 2**25
"""Bytes of an evaluation's JSON that is read; that of 1000 classes has some hundred thousand lines."""
SAME = 1e-6
"""By how much accuracies of the same predictions may differ, which were rounded on their way into files."""


def evaluation_files(folder: Path, ending: str) -> Iterator[Path]:
    """Files of a run's evaluations; without hidden folders, in which one is being written or was given up."""
    place = folder / EVALUATION
    for file in place.rglob(f"*{ending}"):
        if not any(part.startswith(".") for part in file.relative_to(place).parts):
            yield file


def read_evaluations(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Name and content of each of a run's evaluations; those that are damaged or too large are left out."""
    evaluations = []
    for file in sorted(evaluation_files(folder, ".json")):
        try:
            found = json.loads(file.read_bytes()) if file.stat().st_size <= LARGEST_RECORD else None
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            name = file.parent.name if file.parent.name != EVALUATION else file.stem
            evaluations.append((name.replace("_", " "), found))
    return evaluations


def accuracy_interval(story: RunStory) -> tuple[float, float] | None:
    """The 95 % interval of the test accuracy: an evaluation's of the same predictions, or else Wilson's.

    A page has one interval of one accuracy, though there are several methods. None where the number of
    images is not on record.
    """
    share, count = story.metrics.get("test/acc"), story.metrics.get("test/images")
    if share is None or not math.isfinite(share):
        return None
    for _, found in read_evaluations(story.run.path):
        figures = found.get("figures")
        accuracy = figures.get("accuracy") if isinstance(figures, dict) else None
        if found.get("split") != "test" or found.get("combined") or not isinstance(accuracy, dict):
            continue
        value, low, high = (accuracy.get(key) for key in ("value", "low", "high"))
        numbers = [one for one in (value, low, high) if isinstance(one, int | float)]
        if len(numbers) == 3 and math.isclose(numbers[0], share, rel_tol=0, abs_tol=SAME):
            return float(numbers[1]), float(numbers[2])
    return wilson(share, count) if count else None
