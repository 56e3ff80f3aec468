"""Figures of the searches for a learning rate and a batch size."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from project.figures.charts import figure_style
from project.training.tuning.batch_size import Trial
from project.training.tuning.range_test import RangeTest

CURVE, CHOSEN = "#3b6fb6", "#c2452d"


def draw_range_test(found: RangeTest, file: Path) -> None:
    """Draw the loss by the learning rate, as a PNG."""
    with figure_style(text__parse_math=True):  # powers of ten on an axis
        figure, axes = _axes("learning rate", "training loss, smoothed")
        axes.plot(found.rates, found.losses, color=CURVE)
        axes.set_xscale("log")
        top, low = found.losses[0], min(found.losses)
        axes.set_ylim(low - 0.08 * (top - low), top + 0.25 * (top - low))
        if found.suggestion is not None:
            near = min(found.rates, key=lambda rate: abs(rate - (found.suggestion or 0)))
            loss = found.losses[found.rates.index(near)]
            _mark(axes, found.suggestion, loss, f"optim.lr={found.suggestion:g}")
        figure.savefig(file)


def draw_batch_sizes(trials: Sequence[Trial], chosen: int, file: Path) -> None:
    """Draw the throughput by the batch size, as a PNG."""
    measured = {trial.size: trial.images_per_s for trial in trials if trial.images_per_s is not None}
    with figure_style(text__parse_math=True):  # powers of ten on an axis
        figure, axes = _axes("batch size", "training images per second")
        axes.plot(list(measured), list(measured.values()), color=CURVE, marker="o", markersize=4)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(measured), [str(size) for size in measured])
        axes.set_ylim(0, 1.15 * max(measured.values()))
        _mark(axes, chosen, measured[chosen], f"data.batch_size={chosen}", below=16)
        figure.savefig(file)


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    axes.grid(color="#e3e5e8", linewidth=0.6)
    return figure, axes


def _mark(axes: Axes, x: float, y: float, text: str, *, below: int = -8) -> None:
    axes.plot([x], [y], marker="o", color=CHOSEN, markersize=7)
    axes.annotate(text, (x, y), xytext=(8, -below), textcoords="offset points", color=CHOSEN, weight="bold")
