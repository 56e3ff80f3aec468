"""Labels that are likely wrong, by confident learning from predictions for held-out images."""

import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from project.datamodules.base import Split
from project.errors import InputError
from project.inference.evaluate.forward import run_forward
from project.inference.load_run import TrainedRun, load_run
from project.reporting.dataset.scan import Place
from project.runs.comparison import compare, find_trained
from project.runs.run_folder import RunFolder
from project.runs.sweep_folder import find_sweep
from project.runtime.extras import import_extra

MIN_IMAGES = 10
"""Fewest images of a split to which confident learning is applied."""


@dataclass(frozen=True)
class Suspect:
    """Image with its label and the prediction of networks that did not see it.

    Args:
        place: split and row; validation images of a fold count as training images.
        given: index of the label.
        suggested: index of the predicted class.
        score: probability of the label, 0 to 1; low for a suspicious label.
        is_issue: confident learning finds that the label is wrong.
    """

    place: Place
    given: int
    suggested: int
    score: float
    is_issue: bool


@dataclass(frozen=True)
class LabelCheck:
    """Result of the check of the labels.

    Args:
        suspects: all checked images, lowest score first.
        runs: folders of the runs whose networks predicted.
        config: configuration of the data of the first run, resolved to plain values.
        coverage: checked images and all images, by split.
    """

    suspects: list[Suspect]
    runs: list[RunFolder]
    config: dict[str, Any]
    coverage: dict[Split, tuple[int, int]]

    @property
    def num_issues(self) -> int:
        """Number of labels that are likely wrong."""
        return sum(suspect.is_issue for suspect in self.suspects)


def find_runs(folder: Path) -> list[RunFolder]:
    """Return a run, or the finished runs of a sweep's best point: its seeds and folds.

    Raises:
        InputError: there is no finished run.
    """
    if find_sweep(folder) is None:
        return [find_trained(folder)]
    points = compare([folder], guess=True).points
    return [RunFolder(run.folder) for run in points[0].distinct]


def check_labels(
    runs: Sequence[RunFolder], overrides: Sequence[str] = (), accelerator: str | None = None
) -> LabelCheck:
    """Predict the images that each run held out, and find the labels that are likely wrong.

    A run held out its validation and test images. The runs of a sweep with folds hold out every training
    image once; probabilities of several runs for the same image are averaged. Issues are found by confident
    learning (Northcutt et al. 2021, "Confident Learning", JAIR 70, sec. 3; `cleanlab`) in each split.

    Args:
        runs: runs of image classifiers on the same images.
        overrides: overrides of their data, such as `paths.data=sets`.
        accelerator: device [that of the runs].

    Raises:
        InputError: a run is not an image classifier, or has other images; or cleanlab is not installed.
    """
    import_extra("cleanlab", "run", "data")
    collected: dict[Split, _Probabilities] = {}
    changes = {} if accelerator is None else {"accelerator": accelerator}
    config: dict[str, Any] = {}
    for number, run in enumerate(runs):
        print(f"predicting by {run.shown} ({number + 1} of {len(runs)})", file=sys.stderr)
        trained = load_run(run, data=overrides)
        for split, labels, rows, probabilities in _held_out(trained, changes):
            known = collected.setdefault(split, _Probabilities(labels, probabilities.shape[1]))
            if not torch.equal(known.labels, labels):
                raise InputError(
                    f"run={run.shown}: has other images than {runs[0].shown}; name a sweep over one data set"
                )
            known.add(rows, probabilities)
        config = config or trained.data_config()
    suspects = [suspect for split, known in collected.items() for suspect in known.find(split)]
    if not suspects:
        raise InputError(
            f"run={runs[0].shown}: no held-out images (expected validation or test images); train a sweep "
            "with folds=5"
        )
    suspects.sort(key=lambda suspect: suspect.score)
    coverage = {split: (known.num_predicted, len(known.labels)) for split, known in collected.items()}
    return LabelCheck(suspects, list(runs), config, coverage)


def _held_out(
    trained: TrainedRun, changes: dict[str, str]
) -> Iterator[tuple[Split, Tensor, Tensor, NDArray[np.float64]]]:
    """Yield split, all labels of its images, rows and probabilities (n, K) of a run's held-out images."""
    splits: tuple[Split, ...] = ("val", "test")
    for split in splits:
        data = trained.datamodule
        data.prepare_data()
        data.setup("fit" if split == "val" else "test")
        if not data.count(split):
            continue
        found = run_forward(trained, split, trained.choose_tta(None), limit_test_batches=1.0, **changes)
        images = data.subset(split).images
        pool: Split = "train" if split == "val" and images is data.subset("train").images else split
        yield (
            pool,
            images.labels.cpu(),
            found.rows.cpu(),
            found.predictions.log_probabilities.exp().double().numpy(),
        )


class _Probabilities:
    """Mean probabilities (N, K) of a split's images."""

    def __init__(self, labels: Tensor, num_classes: int) -> None:
        self.labels = labels
        self._sums = np.zeros((len(labels), num_classes))
        self._counts = np.zeros(len(labels), np.int64)

    @property
    def num_predicted(self) -> int:
        """Number of images with a prediction."""
        return int((self._counts > 0).sum())

    def add(self, rows: Tensor, probabilities: NDArray[np.float64]) -> None:
        """Add the probabilities of one run for some rows."""
        self._sums[rows.numpy()] += probabilities
        self._counts[rows.numpy()] += 1

    def find(self, split: Split) -> Iterator[Suspect]:
        """Yield the images with their scores."""
        rows = np.flatnonzero(self._counts)
        labels = self.labels.numpy()[rows]
        probabilities = self._sums[rows] / self._sums[rows].sum(1, keepdims=True)
        is_issue, scores = find_issues(labels, probabilities)
        suggested = probabilities.argmax(1)
        for row, *values in zip(rows, labels, suggested, scores, is_issue, strict=True):
            given, best, score, wrong = values
            yield Suspect(Place(split, int(row)), int(given), int(best), float(score), bool(wrong))


def find_issues(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return which labels (N,) are likely wrong, and the score of each, by `cleanlab`.

    Args:
        labels: class indices.
        probabilities: held-out probabilities (N, K), each row with sum 1.
    """
    issues = import_extra("cleanlab.filter", "run", "data")
    rank = import_extra("cleanlab.rank", "run", "data")
    scores = rank.get_label_quality_scores(labels, probabilities, method="self_confidence")
    if len(labels) < MIN_IMAGES:
        return np.zeros(len(labels), bool), scores
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes without images in this split
        found = issues.find_label_issues(labels, probabilities, filter_by="prune_by_noise_rate", n_jobs=1)
    return np.asarray(found, bool), np.asarray(scores, np.float64)
