"""Pictures of an evaluation. Pillow is imported here: only when they are drawn."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from project.datamodules.base import Part
from project.figures import confusion_matrix, contact_sheet, reliability_diagram
from project.inference.evaluate.metrics import Predictions, reliability

MISTAKES = 40
"""Shown at most."""


def draw(folder: Path, predictions: Predictions, part: Part, names: Sequence[str], title: str) -> list[str]:
    """Write `confusion_matrix.png`, `reliability.png`, and `worst_mistakes.png` if there are any.

    Args:
        folder: where.
        predictions: of the images.
        part: the images.
        names: of the classes.
        title: what was evaluated.

    Returns:
        Names of the files.
    """
    pictures = {"confusion_matrix.png": confusion_matrix(predictions.confusion().numpy(), names, title=title)}
    bins = {name: values.numpy() for name, values in reliability(predictions).items()}
    pictures["reliability.png"] = reliability_diagram(bins["confidence"], bins["accuracy"], bins["images"])
    if len(worst := worst_mistakes(predictions)):
        images = part.images.sample(part.rows[worst])
        if images.shape[1] not in (1, 3):  # of other channels the mean is shown
            images = images.float().mean(1, keepdim=True).to(torch.uint8)
        chosen, labels = predictions.chosen[worst].tolist(), predictions.labels[worst].tolist()
        sure = predictions.confidence[worst].tolist()
        captions = [
            f"{names[answer]} ({100 * confidence:.0f} %)\nis {names[label]}\nno. {number}"
            for answer, label, confidence, number in zip(chosen, labels, sure, worst.tolist(), strict=True)
        ]
        pictures["worst_mistakes.png"] = contact_sheet(
            images.numpy(), captions, title="Mistakes, the surest first"
        )
    for name, picture in pictures.items():
        picture.save(folder / name, optimize=True)
    return list(pictures)


def worst_mistakes(predictions: Predictions) -> Tensor:
    """Positions (n,) of the mistakes that the network was surest of, at most 40, the surest first."""
    wrong = torch.nonzero(~predictions.right).flatten()
    order = predictions.confidence[wrong].argsort(descending=True, stable=True)
    return wrong[order][:MISTAKES]
