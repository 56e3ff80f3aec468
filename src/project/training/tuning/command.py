"""`tune=lr` and `tune=batch_size`: search for a value and print it, without training."""

import csv
import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import Logger

from project.config.instantiate import ResolvedConfig
from project.datamodules.base import ImageDataModule
from project.errors import InputError
from project.modules.classifier import ImageClassifier
from project.runs import run_summary
from project.runs.run_context import RunContext
from project.runs.run_folder import RunFolder
from project.runtime import signals
from project.runtime.files import replace_text
from project.runtime.secrets import redact_text
from project.runtime.yaml_text import to_yaml
from project.training.fit import environment_options
from project.training.tuning.batch_size import Trial, choose, try_batch_sizes
from project.training.tuning.range_test import HIGHEST, LOWEST, STEPS, run_range_test

log = logging.getLogger(__name__)


def run_tuning(
    what: str,
    config: ResolvedConfig,
    context: RunContext,
    module: ImageClassifier,
    datamodule: ImageDataModule,
) -> None:
    """Search for a value instead of training, and record the search in the run folder.

    Args:
        what: `lr` or `batch_size`.
        config: of the run.
        context: of the run.
        module: with the configured optimizer; unchanged afterwards.
        datamodule: images to train on.

    Raises:
        InputError: nothing can be suggested.
    """
    run, folder = context.folder, context.folder.path / "tune"
    bare = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    make_trainer = partial(config.build, "trainer", **environment_options(run), **bare)
    trainer: L.Trainer = make_trainer()
    if not trainer.is_global_zero:
        logging.getLogger("project").setLevel(logging.WARNING)
        tune(what, module, datamodule, make_trainer, folder, first=False)
        return
    facts = {"name": config.values["name"], "tune": what, "trial": True}
    with run.recording(**facts, ranks=trainer.world_size) as status:
        replace_text(run.config_file, to_yaml(config.redacted))
        log.info(run_summary.opening(config.values, module.network, trainer, run))
        status["value"] = None
        status["found"] = tune(what, module, datamodule, make_trainer, folder, first=True)
        for logger in config.build("logger").values():
            show(logger, what, folder / f"{what}.png")
    run.require_recorded()


def tune(
    what: str,
    module: ImageClassifier,
    datamodule: ImageDataModule,
    make_trainer: Callable[..., L.Trainer],
    folder: Path,
    *,
    first: bool,
) -> dict[str, float]:
    """Search for a value, print it as an override and write the measurements.

    Args:
        what: `lr` or `batch_size`.
        module: module with its configured optimizer. It is restored afterwards.
        datamodule: source of the training batches.
        make_trainer: function from options to a trainer without loggers and callbacks.
        folder: folder for the table, the figure and `found.txt` with the override; created if missing.
        first: True in the process that writes and prints.

    Returns:
        The value by its key.

    Raises:
        InputError: no value can be suggested.
    """
    folder.mkdir(exist_ok=True)
    with _quiet():
        found, notes = SEARCHES[what](module, datamodule, make_trainer, folder, first)
    (override,) = (f"{key}={value:g}" for key, value in found.items())
    if first:
        replace_text(folder / "found.txt", f"{override}\n")
        lines = [f"   found  {override}", *(f"          {line}" for line in notes)]
        lines += [f"   train  {_command(what, override)}", f" picture  {RunFolder(folder).shown}/{what}.png"]
        log.info("%s", "\n".join(["", *lines]))
    return found


def show(logger: Logger, what: str, picture: Path) -> None:
    """Add the figure to TensorBoard's Images page if the logger writes event files."""
    from torch.utils.tensorboard import SummaryWriter

    writer = getattr(logger, "experiment", None) if hasattr(logger, "log_text") else None
    if isinstance(writer, SummaryWriter):
        from matplotlib.image import imread

        writer.add_image(f"tune/{what}", imread(picture)[..., :3], dataformats="HWC")
        writer.flush()


def _tune_lr(
    module: ImageClassifier,
    datamodule: ImageDataModule,
    make_trainer: Callable[..., L.Trainer],
    folder: Path,
    first: bool,
) -> tuple[dict[str, float], list[str]]:
    log.info("    tune  lr: up to %s steps, from %g to %g", STEPS, LOWEST, HIGHEST)
    test = run_range_test(module, datamodule, make_trainer)
    _raise_if_stopped()
    if test.suggestion is None:
        raise InputError(
            "tune=lr: the loss fell at no learning rate; check that the labels fit the images, or try "
            "debug=overfit"
        )
    rows = [(f"{rate:.6g}", f"{loss:.6g}") for rate, loss in zip(test.rates, test.losses, strict=True)]
    if first:
        from project.training.tuning.figures import draw_range_test  # imports matplotlib

        _write_table(folder / "lr.csv", ("lr", "smoothed_loss"), rows)
        draw_range_test(test, folder / "lr.png")
    lowest = min(test.losses)
    at = test.rates[test.losses.index(lowest)]
    ended = f"; diverged at {test.rates[-1]:.2g}" if len(test.losses) < STEPS else ""
    notes = ["where the loss falls fastest", f"lowest loss: {lowest:.3g} at {at:.2g}{ended}"]
    return {"optim.lr": test.suggestion}, notes


def _tune_batch_size(
    module: ImageClassifier,
    datamodule: ImageDataModule,
    make_trainer: Callable[..., L.Trainer],
    folder: Path,
    first: bool,
) -> tuple[dict[str, float], list[str]]:
    log.info("    tune  batch_size: training briefly with each")
    log.info("%10s%14s", "images", "images / s")

    def report(trial: Trial) -> None:
        _raise_if_stopped()
        speed = "out of memory" if trial.images_per_s is None else f"{trial.images_per_s:,.0f}"
        memory = "" if trial.memory_mib is None else f"{trial.memory_mib:,.0f} MiB"
        log.info("%s", f"{trial.size:10}{speed:>14}{memory:>14}".rstrip())

    trials = try_batch_sizes(module, datamodule, make_trainer, report=report)
    chosen = choose(trials)
    if first:
        from project.training.tuning.figures import draw_batch_sizes  # imports matplotlib

        rows = [(trial.size, trial.images_per_s, trial.memory_mib) for trial in trials]
        _write_table(folder / "batch_size.csv", ("batch_size", "images_per_s", "memory_mib"), rows)
        draw_batch_sizes(trials, chosen, folder / "batch_size.png")
    largest = max(trial.size for trial in trials if trial.images_per_s is not None)
    notes = ["the smallest within 5 % of the best throughput"]
    if trials[-1].images_per_s is None:
        notes[0] += f"; up to {largest} fit into memory"
    notes.append("the best learning rate depends on the batch size: tune=lr searches for it")
    return {"data.batch_size": chosen}, notes


SEARCHES = {"lr": _tune_lr, "batch_size": _tune_batch_size}


def _write_table(file: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([head, *rows])


def _command(what: str, override: str) -> str:
    """Return the command line with the value in place of the search."""
    key = override.partition("=")[0]
    words = [word for word in sys.argv if not word.startswith((f"tune={what}", f"{key}="))]
    return redact_text(shlex.join(["python", *words, override]))


def _raise_if_stopped() -> None:
    if signum := signals.requested():
        raise signals.Stopped(signum)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log lines that every training prints about its images and batches."""
    loggers = [logging.getLogger(f"project.{name}") for name in ("datamodules", "training")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
