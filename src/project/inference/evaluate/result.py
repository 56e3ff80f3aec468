"""Result of an evaluation, with its JSON and terminal output."""

import math
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
from project.runs.intervals import METHOD
from project.runs.provenance import now, versions
from project.runs.results import METRIC_TITLES
from project.runtime.console import Column, table
from project.runtime.text import mistake_text

CLASS_SCORES = ("precision", "recall", "f1")
SAME_IMAGES = ("data.path=", "data.eval_batch_size=")
"""Overrides with which the run's own metrics remain comparable."""
INTERVAL_METHOD = "others: percentile bootstrap over images (Efron & Tibshirani 1993, sec. 13.3)"
LEVEL = 0.95
WIDTH = 80
MAX_CLASSES, MAX_MISTAKES = 20, 5
MEMBER_METRICS = ("accuracy", "loss", "nll", "ece", "macro_f1")
MAX_ORDER_DIFFERENCE = 1e-5
"""Largest relative difference between losses that were summed in different orders."""
Intervals = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class EvaluationResult:
    """Predictions of a network, or of several combined networks, for a split.

    Args:
        title: name of the network, for the terminal.
        trained: the network; for several, the first one.
        forward: result of the forward pass.
        tta: test-time augmentation of the forward pass.
        members: name and metrics of each of several networks.
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
        """Return `{value, low, high}` by metric, without `low` and `high` if there is no interval.

        Accuracy and loss are those of the forward pass, which sums in the order of the run's test.
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
        """Return a row per class: `class`, `images`, and `{value, low, high}` of precision, recall and F1."""
        rows = []
        for number, name in enumerate(self.trained.class_names):
            row = {"class": name, "images": int(self.metrics["support"][number])}
            for key in CLASS_SCORES:
                bounds = intervals.get(key)
                ends = None if bounds is None else (bounds[0][number], bounds[1][number])
                row[key] = _with_bounds(self.metrics[key][number], ends)
            rows.append(row)
        return rows

    def run_metrics(self, options: Options) -> dict[str, float] | None:
        """Return the accuracy and loss that the run recorded for the same weights, split and tta, if any."""
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
            "fractions": METHOD,
            "method": INTERVAL_METHOD if options.num_resamples else None,
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
            "run_figures": self.run_metrics(options),
            "intervals": intervals,
            "classes": classes,
            "calibration": self._calibration(),
            "confusion": self._confusion(),
            "created": now(),
            "versions": dict(versions()),
        }

    def _calibration(self) -> list[dict[str, Any]]:
        """Return `images`, mean `confidence` and `accuracy` per confidence bin, null for empty bins."""
        bins = {name: values.tolist() for name, values in reliability(self.forward.predictions).items()}
        rows = [dict(zip(bins, row, strict=True)) for row in zip(*bins.values(), strict=True)]
        return [row if row["images"] else {**dict.fromkeys(row), "images": 0} for row in rows]

    def _confusion(self) -> list[list[int]]:
        """Return `[true class, predicted class, number of images]` for each nonzero cell."""
        matrix = self.forward.predictions.confusion()
        cells = torch.nonzero(matrix)
        rows: list[list[int]] = torch.cat([cells, matrix[cells[:, 0], cells[:, 1], None]], dim=1).tolist()
        return rows


def _with_bounds(value: Tensor, ends: tuple[Tensor, Tensor] | None) -> dict[str, float]:
    bounds = {} if ends is None else {"low": float(ends[0]), "high": float(ends[1])}
    return {"value": float(value), **bounds}


def render(
    options: Options,
    result: EvaluationResult,
    figures: dict[str, Any],
    classes: Sequence[dict[str, Any]],
    file: str,
) -> str:
    """Format an evaluation for the terminal."""
    trained, forward = result.trained, result.forward
    facts = [
        *([] if result.combined else [trained.checkpoint.name]),
        f"{trained.datamodule.name} {options.split}",
        f"{len(forward.predictions.labels):,} images",
        *([] if result.tta == "none" else [f"tta {result.tta}"]),
        forward.device,
        forward.precision,
    ]
    blocks = [f"{result.title}\n{', '.join(facts)}"]
    if result.members:
        blocks.append(render_members([*result.members, ("combined", figures)]))
    notes, remark = _compare_with_run(result, result.run_metrics(options))
    blocks += [render_figures(figures, notes), render_classes(classes, file)]
    return "\n\n".join(blocks + ([remark] if remark else []))


def _compare_with_run(
    result: EvaluationResult, recorded: Mapping[str, float] | None
) -> tuple[dict[str, str], str]:
    """Return notes on the metrics, and a text if they differ from those that the run recorded."""
    forward, trained = result.forward, result.trained
    if recorded is None or forward.loss is None:
        return {}, ""
    is_same = {
        "accuracy": forward.accuracy == recorded["accuracy"],
        "loss": math.isclose(forward.loss, recorded["loss"], rel_tol=MAX_ORDER_DIFFERENCE, abs_tol=1e-9),
    }
    notes = {name: "as in the run" for name, same in is_same.items() if same}
    if all(is_same.values()) or any(word.startswith("data.path=") for word in trained.data_overrides):
        return notes, ""
    trainer, versions = trained.config["trainer"], trained.run.read_status().get("versions") or {}
    return notes, (
        f"The run recorded accuracy {recorded['accuracy']:.6f} and loss {recorded['loss']:.6f} "
        f"({trainer['accelerator']}, {trainer['precision']}, torch {versions.get('torch', 'unknown')}).\n"
        "Another device, precision or version of torch changes the last digits; a larger\n"
        "difference means that the images or the code have changed since."
    )


def render_figures(figures: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    """Format one row per metric: value, 95 % interval and note."""
    rows = [
        [title, number(figures[name]["value"]), _interval(figures[name]), notes.get(name)]
        for name, title in METRIC_TITLES.items()
        if name in figures
    ]
    return _table(["metric", "value", "95 % interval", ""], rows)


def render_classes(classes: Sequence[dict[str, Any]], file: str) -> str:
    """Format one row per class; of more than 20 classes, those with the lowest F1."""
    rows = list(classes)
    if len(rows) > MAX_CLASSES:
        scored = [row for row in rows if not math.isnan(row["f1"]["value"])]
        rows = sorted(scored, key=lambda row: row["f1"]["value"])[:MAX_CLASSES]
    cells = [
        [
            row["class"],
            f"{row['images']:,}",
            *(number(row[key]["value"]) for key in ("precision", "recall", "f1")),
            _interval(row["f1"]),
        ]
        for row in rows
    ]
    text = _table(["class", "images", "precision", "recall", "F1", "95 % interval"], cells)
    if len(classes) > len(rows):
        text += f"\n  the {len(rows)} of {len(classes)} classes with the lowest F1; all are in {file}"
    return text


def render_mistakes(mistakes: Sequence[Mapping[str, Any]]) -> str:
    """Format the most confident mistakes, one per row, with the file or the index of each."""
    shown = mistakes[:MAX_MISTAKES]
    has_files = "file" in shown[0]
    heads = [Column("most confident mistakes", right=False), Column("file", right=False, keep="end")]
    rows = [
        [
            mistake_text(row["label"], row["prediction"], row["probability"]),
            row["file"] if has_files else str(row["index"]),
        ]
        for row in shown
    ]
    heads[1] = heads[1] if has_files else Column("index")
    return table(heads, rows, width=WIDTH, indent=2)


def render_members(members: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Format one row per network: name and the most important metrics."""
    rows = [
        [name, *(number(figures.get(key, {}).get("value")) for key in MEMBER_METRICS)]
        for name, figures in members
    ]
    return _table(["network", "accuracy", "loss", "NLL", "ECE", "macro F1"], rows)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str | None]]) -> str:
    """Format rows that begin with a name, without empty columns."""
    used = [column for column in range(len(titles)) if any(row[column] for row in rows)]
    name = Column(titles[0], right=False, keep="end" if titles[0] == "network" else "start")
    columns = [name, *(Column(titles[column], fixed=True) for column in used[1:])]
    return table(columns, [[row[column] for column in used] for row in rows], width=WIDTH, indent=2)


def _interval(figure: Mapping[str, float]) -> str | None:
    return f"{number(figure['low'])} to {number(figure['high'])}" if "low" in figure else None


def number(value: float | None) -> str:
    """Format a number with four decimals, or five digits from 100 on; a dash if it is undefined."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.5g}"
