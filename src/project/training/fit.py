"""Functions that build callbacks and trainer, train, and evaluate the best weights."""

import logging
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    LambdaCallback,
    ModelCheckpoint,
    ProgressBar,
)
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden

from project.callbacks.progress import Progress
from project.callbacks.run_record import RunRecord
from project.callbacks.run_status import RunStatus
from project.config.cli import exit_on_errors
from project.config.instantiate import ResolvedConfig
from project.datamodules.base import SupervisedDataModule
from project.datamodules.loading.prefetch import explain_worker_failures
from project.errors import InputError, one_line
from project.runs import checkpoint_files, config_diff
from project.runs.folders import folder_lock
from project.runs.metric_names import is_of_split
from project.runs.run_folder import RunContext, RunFolder
from project.runtime import lazy_imports, signals, slurm, torchrun
from project.runtime.atomic_files import replace_text
from project.runtime.text import plural
from project.runtime.yaml_files import to_yaml
from project.training.epoch_loop import StopDuringValidation

log = logging.getLogger(__name__)

NOT_LOGGED = re.compile(
    r"conditioned on metric `?([^\s`]+)`?.* not available"
    r"|monitor='([^']+)'\)`? could not find the monitored key"
)
"""Lightning's messages about a monitored metric that was not logged."""


@contextmanager
def run_scope(context: RunContext) -> Iterator[None]:
    """Lock the run folder, report errors and handle stop signals while a run lasts.

    A run folder in which no training has started is removed after an error. If SLURM's time limit ends a
    single run, its job is requeued. Errors of a single run are reported here, before Hydra adds its own
    lines; a sweep's launcher reports the errors of its jobs.

    Raises:
        SystemExit: a single run failed; the error has been reported.
        Stopped: the process received a stop signal.
    """
    try:
        with ExitStack() as stack:
            if not context.in_sweep:
                stack.enter_context(exit_on_errors())
            if context.is_first:
                stack.enter_context(folder_lock(context.folder.path))
                stack.enter_context(context.folder.removed_if_untrained(job=context.in_sweep))
            yield
    except signals.Stopped as stop:
        if stop.signum == signal.SIGUSR1 and context.is_first and not context.in_sweep:
            slurm.requeue()
        raise


def build_callbacks(
    config: ResolvedConfig, context: RunContext, datamodule: L.LightningDataModule
) -> dict[str, Callback]:
    """Build the configured callbacks by name, and add those that every run needs.

    Raises:
        InputError: a constructor rejects its arguments, or the schedule monitors a validation metric although
            there is no validation.
    """
    callbacks: dict[str, Callback] = config.build("callbacks")
    callbacks = drop_second_bar(callbacks)
    if not has_validation(datamodule) or not config.values["trainer"]["limit_val_batches"]:
        callbacks = drop_validation_callbacks(callbacks, config.values.get("scheduler", {}))
    if context.ckpt_path is not None and context.is_first:  # saved only once training has started
        callbacks["changes"] = LambdaCallback(
            on_train_start=lambda *_: replace_text(context.folder.composed_file, to_yaml(config.composed))
        )
    return callbacks | {
        "run_record": RunRecord(config.redacted),
        "run_status": RunStatus(context.folder),
        "stop": StopDuringValidation(),
    }


def build_trainer(
    config: ResolvedConfig, context: RunContext, callbacks: dict[str, Callback], loggers: list[Logger]
) -> L.Trainer:
    """Build the configured trainer.

    Raises:
        InputError: the trainer rejects its arguments.
    """
    trainer: L.Trainer = config.build(
        "trainer",
        callbacks=list(callbacks.values()),
        logger=loggers,
        # Otherwise Lightning adds its own progress bar and checkpoint callback.
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks.values()),
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks.values()),
        **environment_options(context.folder),
    )
    return trainer


def environment_options(folder: RunFolder) -> dict[str, Any]:
    """Return the trainer arguments for folder and cluster environment, which Lightning would detect."""
    return {
        "default_root_dir": str(folder.path),
        # Lightning would start its ranks through SLURM if the process runs inside an allocation.
        "plugins": [TorchElasticEnvironment() if torchrun.environment() else LightningEnvironment()],
    }


def check_resumed_config(config: ResolvedConfig, context: RunContext, module: L.LightningModule) -> None:
    """Compare the configuration of a resumed run with its checkpoint's, and log the changes.

    Raises:
        InputError: the checkpoint is damaged or belongs to another network, or a changed key makes resuming
            invalid.
    """
    if context.ckpt_path is None:
        return
    saved = checkpoint_files.read(context.ckpt_path, module.state_dict())
    changes = config_diff.check_changes(saved, config.redacted, force=context.resume_force)
    if changes and context.is_first:
        log.info("changed  %s", "\n         ".join(map(str, changes)))
    max_epochs = config.values["trainer"]["max_epochs"]  # including epochs before resuming; -1: no limit
    done = saved["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if 0 < max_epochs < done:
        raise InputError(
            f"trainer.max_epochs={max_epochs}: below the {plural(done, 'epoch')} already trained; set it "
            f"above {done} to continue training"
        )
    if max_epochs == done:
        log.info(
            "%s already trained; to continue training, set trainer.max_epochs above that",
            plural(done, "epoch"),
        )


@contextmanager
def explain_refusals(trainer: L.Trainer) -> Iterator[None]:
    """Report Lightning's refusals, as of a metric that was not logged, as an `InputError` of one line."""
    try:
        yield
    except (MisconfigurationException, RuntimeError) as error:
        if found := NOT_LOGGED.search(str(error)):
            known = sorted(trainer.callback_metrics)
            raise InputError(
                f"monitor={found[1] or found[2]}: the task has not logged it; it logs "
                f"{', '.join(known) or 'no metric'}; set monitor and mode to one of them"
            ) from error
        if isinstance(error, MisconfigurationException):
            raise InputError(f"trainer: {one_line(error)}") from error
        raise


@explain_worker_failures()
def fit_and_evaluate(
    trainer: L.Trainer,
    module: L.LightningModule,
    datamodule: L.LightningDataModule,
    callbacks: dict[str, Callback],
    ckpt_path: str | None,
) -> tuple[dict[str, float], str]:
    """Train, then validate and test the best weights, or the last weights if there are no best ones.

    A split is skipped if the data module has no loader for it or the module no step.

    Returns:
        Metrics by name, and the weights that were evaluated: `best` or `last`.
    """
    lazy_imports.freeze_gc()
    with explain_refusals(trainer):
        trainer.fit(module, datamodule, ckpt_path=ckpt_path, weights_only=True)
    metrics = dict(trainer.callback_metrics)
    if state_set_by_search(callbacks):
        return {name: float(value) for name, value in metrics.items()}, "last"
    path = trainer.strategy.broadcast(best_checkpoint(callbacks) if trainer.is_global_zero else None)
    options: dict[str, Any] = {"ckpt_path": path, "weights_only": True, "verbose": False}
    if has_validation(datamodule) and is_overridden("validation_step", module):
        trainer.validate(module, datamodule, **options)
        metrics |= trainer.callback_metrics
    if is_overridden("test_dataloader", datamodule) and is_overridden("test_step", module):
        trainer.test(module, datamodule, **options)
        metrics |= trainer.callback_metrics
    return {name: float(value) for name, value in metrics.items()}, "best" if path else "last"


def has_validation(datamodule: L.LightningDataModule) -> bool:
    """Return True if a data module has a validation split."""
    if isinstance(datamodule, SupervisedDataModule):
        is_set_up = datamodule.count("train") > 0
        return datamodule.count("val") > 0 if is_set_up else datamodule.has_validation
    return is_overridden("val_dataloader", datamodule)


def best_checkpoint(callbacks: dict[str, Callback]) -> str | None:
    """Return the path of the best checkpoint; None if there is none, or if it is damaged (with a warning)."""
    best = callbacks.get("best")
    path = best.best_model_path if isinstance(best, ModelCheckpoint) else ""
    if path and (problem := checkpoint_files.find_damage(Path(path))):
        log.warning("%s %s; evaluating the last weights instead", path, problem)
        return None
    return path or None


def state_set_by_search(callbacks: dict[str, Callback]) -> str:
    """Return `pruned` or `paused` if a search stopped the run, which is then not evaluated; else empty."""
    states = ("pruned", "paused")
    return next((one for one in states for each in callbacks.values() if getattr(each, one, False)), "")


def drop_second_bar(callbacks: dict[str, Callback]) -> dict[str, Callback]:
    """Drop this project's progress bar if another one is configured, and log the names."""
    bars = {name: one for name, one in callbacks.items() if isinstance(one, ProgressBar)}
    ours = [name for name, one in bars.items() if isinstance(one, Progress)]
    if len(ours) == len(bars) or not ours:
        return callbacks
    others = ", ".join(name for name in bars if name not in ours)
    log.info("progress bar: callbacks.%s, instead of callbacks.%s", others, ", ".join(ours))
    return {name: one for name, one in callbacks.items() if name not in ours}


def drop_validation_callbacks(
    callbacks: dict[str, Callback], scheduler: dict[str, Any]
) -> dict[str, Callback]:
    """Drop the callbacks that monitor a validation metric, and log their names.

    Raises:
        InputError: the schedule monitors a validation metric.
    """
    if is_of_split(scheduler.get("monitor", ""), "val"):
        raise InputError(
            f"scheduler.monitor={scheduler['monitor']}: there are no validation images (data.val_size=0); "
            "monitor training with monitor=train/loss mode=min, or choose another scheduler"
        )
    monitoring = [
        name
        for name, callback in callbacks.items()
        if isinstance(callback, EarlyStopping | ModelCheckpoint)
        and is_of_split(callback.monitor or "", "val")
    ]
    if monitoring:
        log.info(
            "no validation images: disabled callbacks %s; the last weights are evaluated",
            ", ".join(monitoring),
        )
    return {name: callback for name, callback in callbacks.items() if name not in monitoring}
