"""Terminal output of an evaluation, in 80 columns."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from project.inference.evaluate.options import Options
from project.inference.evaluate.result import EvaluationResult
from project.runs.results import METRIC_TITLES
from project.runtime.console import Column, table

WIDTH = 80
MAX_CLASSES = 20
MEMBER_METRICS = ("accuracy", "loss", "nll", "ece", "macro_f1")
MAX_ORDER_DIFFERENCE = 1e-5
"""Largest relative difference of losses that were summed in another order."""


def render(
    options: Options,
    result: EvaluationResult,
    figures: dict[str, Any],
    classes: Sequence[dict[str, Any]],
    file: str,
) -> str:
    """Lay out an evaluation for the terminal."""
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
        blocks.append(render_members([*result.members, ("all together", figures)]))
    notes, remark = _compare_with_run(result, result.recorded(options))
    blocks += [render_figures(figures, notes), render_classes(classes, file)]
    return "\n\n".join(blocks + ([remark] if remark else []))


def _compare_with_run(
    result: EvaluationResult, recorded: Mapping[str, float] | None
) -> tuple[dict[str, str], str]:
    """Return notes on the metrics, and a line if they differ from the run's own."""
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
    """Lay out one row for each metric: value, 95 % interval and note."""
    rows = [
        [title, number(figures[name]["value"]), _interval(figures[name]), notes.get(name)]
        for name, title in METRIC_TITLES.items()
        if name in figures
    ]
    return _table(["metric", "value", "95 % interval", ""], rows)


def render_classes(classes: Sequence[dict[str, Any]], file: str) -> str:
    """Lay out one row for each class; for more than 20, those with the lowest F1."""
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


def render_members(members: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Lay out one row for each network: name and the most important metrics."""
    rows = [
        [name, *(number(figures.get(key, {}).get("value")) for key in MEMBER_METRICS)]
        for name, figures in members
    ]
    return _table(["network", "accuracy", "loss", "NLL", "ECE", "macro F1"], rows)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str | None]]) -> str:
    """Lay out rows that begin with a name, without columns that are empty."""
    used = [place for place in range(len(titles)) if any(row[place] for row in rows)]
    name = Column(titles[0], right=False, keep="end" if titles[0] == "network" else "start")
    columns = [name, *(Column(titles[place], fixed=True) for place in used[1:])]
    return table(columns, [[row[place] for place in used] for row in rows], width=WIDTH, indent=2)


def _interval(figure: Mapping[str, float]) -> str | None:
    return f"{number(figure['low'])} … {number(figure['high'])}" if "low" in figure else None


def number(value: float | None) -> str:
    """Format a number with four decimals, fewer from 100 on; a dash for an undefined one."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.5g}"
