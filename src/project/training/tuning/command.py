"""`tune=lr` and `tune=batch_size`: search for a value and print it, without training."""

import csv
import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import lightning as L
from PIL import Image

from project.config.instantiate import ResolvedConfig
from project.datamodules.base import SupervisedDataModule
from project.errors import InputError
from project.loggers import tracking
from project.modules.supervised import SupervisedModule
from project.runs import run_summary
from project.runs.run_folder import RunContext, RunFolder
from project.runtime import signals
from project.runtime.atomic_files import replace_text
from project.runtime.secrets import redact_text
from project.runtime.yaml_files import to_yaml
from project.training.fit import environment_options
from project.training.tuning.batch_size import BatchSizeTrial, choose_batch_size, try_batch_sizes
from project.training.tuning.range_test import MAX_LR, MIN_LR, NUM_REPEATS, run_range_test

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger(__name__)

CURVE_COLOR, CHOSEN_COLOR = "#3b6fb6", "#c2452d"

MakeTrainer = Callable[..., L.Trainer]
"""Builds a trainer without loggers and callbacks from options."""


class TuningResult(NamedTuple):
    """Result of a search."""

    key: str  # configuration key, e.g. optim.lr
    value: float
    notes: list[str]  # printed lines
    columns: tuple[str, ...]  # of the CSV file
    rows: Sequence[Sequence[object]]
    draw: "Callable[[Axes], None]"


def run_tuning(
    what: str,
    config: ResolvedConfig,
    context: RunContext,
    module: L.LightningModule,
    datamodule: L.LightningDataModule,
) -> None:
    """Search for a learning rate or batch size instead of training, and record it in the run folder.

    Args:
        what: `lr` or `batch_size`.
        config: configuration of the run.
        context: context of the run.
        module: module with the configured optimizer; restored afterward.
        datamodule: training data.

    Raises:
        InputError: the search finds no value.
    """
    if not isinstance(module, SupervisedModule) or not isinstance(datamodule, SupervisedDataModule):
        raise InputError(
            f"tune={what}: not supported for this task (expected a {SupervisedModule.__name__} on a "
            f"{SupervisedDataModule.__name__}, got {type(module).__name__} on {type(datamodule).__name__}); "
            "set the value by hand"
        )
    run = context.folder
    bare = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    make_trainer = partial(config.build, "trainer", **environment_options(run), **bare)
    search = partial(SEARCHES[what], module, datamodule, make_trainer)
    trainer: L.Trainer = make_trainer()
    if not trainer.is_global_zero:
        logging.getLogger("project").setLevel(logging.WARNING)
        search()
        return
    facts = {"name": config.values["name"], "tune": what, "trial": True}
    with run.recording(**facts, ranks=trainer.world_size) as status:
        replace_text(run.config_file, to_yaml(config.redacted))
        log.info(run_summary.start_summary(config.values, module, trainer, run))
        with _quiet_loggers():
            found = search()
        status |= {"value": None, "found": {found.key: found.value}}
        figure = _record(found, what, run.path / "tune")
        loggers = list(config.build("logger").values())
        with tracking.closing(loggers, status), Image.open(figure) as image:
            for logger in loggers:
                if isinstance(logger, tracking.VisualLogger):
                    logger.log_image(f"tune/{what}", image.convert("RGB"), 0)
                    logger.save()
    run.require_recorded()


def _record(found: TuningResult, what: str, folder: Path) -> Path:
    """Write and print the result of a search; return the path of its figure."""
    override, figure = f"{found.key}={found.value:g}", folder / f"{what}.png"
    folder.mkdir(exist_ok=True)
    with (folder / f"{what}.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([found.columns, *found.rows])
    _draw(found, figure)
    replace_text(folder / "found.txt", f"{override}\n")
    words = [word for word in sys.argv if not word.startswith((f"tune={what}", f"{found.key}="))]
    command = redact_text(shlex.join(["python", *words, override]))
    lines = [f"   found  {override}", *(f"          {line}" for line in found.notes)]
    lines += [f"   train  {command}", f" picture  {RunFolder(figure).shown}"]
    log.info("%s", "\n".join(["", *lines]))
    return figure


def _draw(found: TuningResult, file: Path) -> None:
    from matplotlib.figure import Figure

    from project.figures.charts import figure_style

    with figure_style(text__parse_math=True):  # powers of ten on an axis
        figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(color="#e3e5e8", linewidth=0.6)
        found.draw(axes)
        figure.savefig(file)


def _mark(axes: "Axes", x: float, y: float, text: str, *, above: int) -> None:
    axes.plot([x], [y], color=CHOSEN_COLOR, marker="o", markersize=7)
    axes.annotate(
        text, (x, y), xytext=(8, above), textcoords="offset points", color=CHOSEN_COLOR, weight="bold"
    )


def _tune_lr(
    module: SupervisedModule, datamodule: SupervisedDataModule, make_trainer: MakeTrainer
) -> TuningResult:
    log.info("    tune  lr: %s passes from %g to %g", NUM_REPEATS, MIN_LR, MAX_LR)
    test = run_range_test(module, datamodule, make_trainer)
    _raise_if_stopped()
    rates, losses, suggestion = test.rates, test.losses, test.suggestion
    if suggestion is None:
        raise InputError(
            "tune=lr: the loss fell at no learning rate by more than its noise; check that the targets match "
            "the inputs, or try debug=overfit"
        )
    lowest, top = min(losses), losses[0]
    ended = f"; diverged at {rates[-1]:.2g}" if test.has_diverged else ""
    at = rates[losses.index(lowest)]
    notes = ["learning rate at which the loss falls fastest", f"lowest loss: {lowest:.3g} at {at:.2g}{ended}"]

    def draw(axes: "Axes") -> None:
        axes.set(
            xlabel="learning rate",
            ylabel=f"training loss, smoothed mean of {NUM_REPEATS} passes",
            xscale="log",
        )
        axes.set_ylim(lowest - 0.08 * (top - lowest), top + 0.25 * (top - lowest))
        axes.plot(rates, losses, color=CURVE_COLOR)
        near = min(range(len(rates)), key=lambda step: abs(rates[step] - suggestion))
        _mark(axes, suggestion, losses[near], f"optim.lr={suggestion:g}", above=8)

    rows = [(f"{rate:.6g}", f"{loss:.6g}") for rate, loss in zip(rates, losses, strict=True)]
    return TuningResult("optim.lr", suggestion, notes, ("lr", "smoothed_loss"), rows, draw)


def _tune_batch_size(
    module: SupervisedModule, datamodule: SupervisedDataModule, make_trainer: MakeTrainer
) -> TuningResult:
    log.info("    tune  batch_size: training briefly with each size")
    log.info("%10s%14s", "inputs", "inputs / s")

    def report(trial: BatchSizeTrial) -> None:
        _raise_if_stopped()
        speed = "out of memory" if trial.images_per_s is None else f"{trial.images_per_s:,.0f}"
        memory = "" if trial.memory_mib is None else f"{trial.memory_mib:,.0f} MiB"
        log.info("%s", f"{trial.size:10}{speed:>14}{memory:>14}".rstrip())

    trials = try_batch_sizes(module, datamodule, make_trainer, report=report)
    chosen = choose_batch_size(trials)
    measured = {trial.size: trial.images_per_s for trial in trials if trial.images_per_s is not None}
    notes = ["smallest size within 5 % of the best throughput"]
    if trials[-1].images_per_s is None:
        notes[0] += f"; up to {max(measured)} inputs fit into memory"
    notes.append("the best learning rate depends on the batch size; find it with tune=lr")

    def draw(axes: "Axes") -> None:
        axes.set(xlabel="batch size", ylabel="training inputs per second")
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(measured), [str(size) for size in measured])
        axes.set_ylim(0, 1.15 * max(measured.values()))
        axes.plot(list(measured), list(measured.values()), color=CURVE_COLOR, marker="o", markersize=4)
        _mark(axes, chosen, measured[chosen], f"data.batch_size={chosen}", above=-16)

    rows = [(trial.size, trial.images_per_s, trial.memory_mib) for trial in trials]
    columns = ("batch_size", "images_per_s", "memory_mib")
    return TuningResult("data.batch_size", chosen, notes, columns, rows, draw)


SEARCHES = {"lr": _tune_lr, "batch_size": _tune_batch_size}


def _raise_if_stopped() -> None:
    if signum := signals.requested():
        raise signals.Stopped(signum)


@contextmanager
def _quiet_loggers() -> Iterator[None]:
    """Suppress the log lines that each training prints about its data and batches."""
    loggers = [logging.getLogger(f"project.{name}") for name in ("datamodules", "training.epoch_loop")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
