"""Result of an evaluation, as it is shown and written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from project.inference.evaluate.forward import ForwardResult
from project.inference.evaluate.metrics import compute_metrics, reliability
from project.inference.evaluate.options import Options
from project.inference.load_run import TrainedRun
from project.inference.run_config import read_tta
from project.runs.provenance import now, versions

CLASS_SCORES = ("precision", "recall", "f1")
SAME_IMAGES = ("data.path=", "data.eval_batch_size=")
"""Overrides under which the run's own metrics stay comparable."""
INTERVAL_METHOD = "percentile bootstrap over images (Efron & Tibshirani 1993, sec. 13.3)"
LEVEL = 0.95
Intervals = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class EvaluationResult:
    """A network, or several as one, with its predictions for the images of a split.

    Args:
        title: name of the network, for the terminal.
        trained: the network; for several, the first one.
        forward: result of the pass over the images.
        tta: test-time augmentation of that pass.
        members: for several networks, name and figures of each.
        combined: combination of several networks, `ensemble` or `average`.
    """

    title: str
    trained: TrainedRun
    forward: ForwardResult
    tta: str
    members: Sequence[tuple[str, dict[str, Any]]] = ()
    combined: str | None = None

    @cached_property
    def metrics(self) -> dict[str, Tensor]:
        """All metrics; see `compute_metrics`."""
        return compute_metrics(self.forward.predictions)

    def figures(self, intervals: Intervals) -> dict[str, dict[str, float]]:
        """Return `{value, low, high}` by metric, without `low` and `high` where there is no interval.

        Accuracy and loss are those of the forward pass, which sums as the run's own test does.
        """
        figures = {
            name: _with_bounds(value, intervals.get(name))
            for name, value in self.metrics.items()
            if value.ndim == 0
        }
        figures["accuracy"]["value"] = self.forward.accuracy
        if self.forward.loss is not None:
            figures.setdefault("loss", {})["value"] = self.forward.loss
        return figures

    def class_rows(self, intervals: Intervals) -> list[dict[str, Any]]:
        """Return for each class `class`, `images`, and `{value, low, high}` of precision, recall and F1."""
        rows = []
        for number, name in enumerate(self.trained.class_names):
            row = {"class": name, "images": int(self.metrics["support"][number])}
            for key in CLASS_SCORES:
                bounds = intervals.get(key)
                ends = None if bounds is None else (bounds[0][number], bounds[1][number])
                row[key] = _with_bounds(self.metrics[key][number], ends)
            rows.append(row)
        return rows

    def recorded(self, options: Options) -> dict[str, float] | None:
        """Return the run's own accuracy and loss of the same weights, split and tta; None without them."""
        trained = self.trained
        status = trained.run.read_status()
        metrics = status.get("metrics")
        tta = read_tta(trained.config) if options.split == "test" else "none"
        is_own_file = trained.checkpoint.resolve().parent == trained.run.checkpoints.resolve()
        is_tested_file = is_own_file and trained.checkpoint.stem == status.get("weights")
        if self.combined or self.tta != tta or not is_tested_file:
            return None
        if options.split == "train" or not isinstance(metrics, dict):
            return None
        if not all(word.startswith(SAME_IMAGES) for word in options.data):
            return None
        accuracy, loss = metrics.get(f"{options.split}/acc"), metrics.get(f"{options.split}/loss")
        return None if accuracy is None or loss is None else {"accuracy": accuracy, "loss": loss}

    def to_json(
        self, options: Options, figures: dict[str, Any], classes: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Return the content of evaluation.json."""
        trained, predictions = self.trained, self.forward.predictions
        intervals = {
            "method": INTERVAL_METHOD,
            "level": LEVEL,
            "resamples": options.num_resamples,
            "seed": options.seed,
        }
        return {
            "run": None if self.combined else trained.run.shown,
            "checkpoint": None if self.combined else trained.checkpoint.name,
            "combined": self.combined,
            "members": [{"name": name, "figures": values} for name, values in self.members],
            "split": options.split,
            "data": trained.datamodule.name,
            "overrides": [*options.data, *options.paths],
            "images": len(predictions.labels),
            "tta": self.tta,
            "device": self.forward.device,
            "precision": self.forward.precision,
            "figures": figures,
            "run_figures": self.recorded(options),
            "intervals": intervals if options.num_resamples else None,
            "classes": classes,
            "calibration": self._calibration(),
            "confusion": self._confusion(),
            "created": now(),
            "versions": dict(versions()),
        }

    def _calibration(self) -> list[dict[str, Any]]:
        """Return `images`, mean `confidence` and `accuracy` of each confidence bin, null if it is empty."""
        bins = {name: values.tolist() for name, values in reliability(self.forward.predictions).items()}
        rows = [dict(zip(bins, row, strict=True)) for row in zip(*bins.values(), strict=True)]
        return [row if row["images"] else {**dict.fromkeys(row), "images": 0} for row in rows]

    def _confusion(self) -> list[list[int]]:
        """Return `[class, predicted class, images]` of each cell that is not 0."""
        matrix = self.forward.predictions.confusion()
        cells = torch.nonzero(matrix)
        rows: list[list[int]] = torch.cat([cells, matrix[cells[:, 0], cells[:, 1], None]], dim=1).tolist()
        return rows


def _with_bounds(value: Tensor, ends: tuple[Tensor, Tensor] | None) -> dict[str, float]:
    bounds = {} if ends is None else {"low": float(ends[0]), "high": float(ends[1])}
    return {"value": float(value), **bounds}
