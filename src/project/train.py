"""One run, from its configuration to its result: read this to see how the pieces meet."""

import logging
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
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
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from omegaconf import DictConfig, OmegaConf

from project.callbacks.run_status import Record
from project.callbacks.visuals import Story
from project.config.cli import ending_single_run_on_errors, in_sweep, is_debugging
from project.config.derived_values import complete
from project.config.instantiate import build, build_module
from project.datamodules.base import ImageDataModule
from project.datamodules.loading.prefetch import naming_worker_failures
from project.errors import InputError
from project.modules.classifier import ImageClassifier
from project.runs import checkpoints, config_diff, run_summary
from project.runs.hparam_diff import hyperparameters
from project.runs.lock import run_lock
from project.runs.run_folder import RunFolder, describe
from project.runtime import lazy_imports, secrets, signals, slurm, torchrun
from project.runtime.files import replace_text
from project.runtime.library_warnings import silence_libraries
from project.runtime.process import keep_freed_memory
from project.runtime.yaml_text import to_yaml
from project.training.ddp.launch import count_ranks, run_ranks
from project.training.ddp.supervisor import RankFailedError
from project.training.stop_callback import StopDuringValidation

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> float | None:
    """Train, evaluate and record one run, in one process or in one for each device.

    Args:
        cfg: composed from conf/train.yaml.

    Returns:
        The value of `cfg.monitor` for the evaluated weights, None if it was not measured.
    """
    complete(cfg)  # where other launchers than ours have composed it
    run = RunFolder(cfg.paths.run)
    alone = run_lock(run.path) if torchrun.is_rank_zero() else nullcontext()
    keeping = run.removed_if_untrained(job=in_sweep()) if torchrun.is_rank_zero() else nullcontext()
    with requeueing(), ending_single_run_on_errors(), alone, keeping:
        if torchrun.environment() is not None:
            torchrun.broadcast_config(cfg)
            return train_rank(cfg, run)
        ranks = count_ranks(cfg.trainer.accelerator, cfg.trainer.devices)
        if ranks == 1:
            return train_rank(cfg, run)
        try:
            run_ranks(lambda: train_rank(cfg, run), ranks)
        except BaseException as error:  # rank 0, which keeps the status, may have been killed
            text = str(error) if isinstance(error, RankFailedError) else describe(error)
            run.record_end(text, interrupted=isinstance(error, signals.Stopped))
            raise
        return run.read_status()["value"]


@contextmanager
def requeueing() -> Iterator[None]:
    """When SLURM has warned that the time of a single run's job is over, have it start the job again."""
    try:
        yield
    except signals.Stopped as stop:
        if stop.signum == signal.SIGUSR1 and torchrun.is_rank_zero() and not in_sweep():
            slurm.requeue()
        raise


def train_rank(cfg: DictConfig, run: RunFolder) -> float | None:
    """Do this process's part of a run: all of it, or that of one DDP rank.

    Raises:
        Stopped: the process was told to stop.
    """
    with signals.raise_on_signal():
        return _train_rank(cfg, run)


def _train_rank(cfg: DictConfig, run: RunFolder) -> float | None:
    silence_libraries()
    keep_freed_memory()
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    secrets.note_all(config)
    record = secrets.redact(config)
    L.seed_everything(cfg.seed, workers=True, verbose=False)

    datamodule: ImageDataModule = build(config, "data")
    datamodule.may_have_changed = cfg.get("resume_force", False)
    module = build_module(config, record)
    if cfg.get("tune"):
        find_value(cfg, config, record, module, datamodule, run)
        return None
    callbacks: dict[str, Callback] = build(config, "callbacks")
    if not datamodule.validates or not cfg.trainer.limit_val_batches:
        callbacks = without_validation(callbacks, config["scheduler"])
    if in_sweep() and isinstance(story := callbacks.get("story"), Story):
        story.keep_to_share()
    if cfg.ckpt_path is not None and torchrun.is_rank_zero():  # changes are kept once they have proved right
        callbacks["changes"] = LambdaCallback(
            on_train_start=lambda *_: replace_text(run.composed_file, to_yaml(cfg))
        )
    callbacks |= {"record": Record(run), "stop": StopDuringValidation()}
    loggers = list(build(config, "logger").values())
    trainer: L.Trainer = build(
        config,
        "trainer",
        callbacks=list(callbacks.values()),
        logger=loggers,
        # Where there are none, Lightning would add its own.
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks.values()),
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks.values()),
        **surroundings(run),
    )

    if cfg.ckpt_path is not None:
        taken_up = checkpoints.read(cfg.ckpt_path, module.state_dict())
        changed = config_diff.check(taken_up, record, force=cfg.get("resume_force", False))
        if changed and trainer.is_global_zero:
            log.info("changed  %s", "\n         ".join(map(str, changed)))
        refuse_fewer_epochs(taken_up, cfg.trainer.max_epochs)

    if not trainer.is_global_zero:
        logging.getLogger("project").setLevel(logging.WARNING)
        return fit_and_evaluate(trainer, module, datamodule, callbacks, cfg.ckpt_path)[0].get(cfg.monitor)

    facts = {"name": cfg.name, "monitor": cfg.monitor, "mode": cfg.mode, "trial": is_debugging()}
    with run.recording(**facts, ranks=trainer.world_size) as status:
        text = to_yaml(record)
        replace_text(run.config_file, text)
        for logger in loggers:
            logger.log_hyperparams(hyperparameters(record))
            if hasattr(logger, "log_text"):
                logger.log_text("config", text)
        log.info(run_summary.opening(config, module.network, trainer, run))
        metrics, weights = fit_and_evaluate(trainer, module, datamodule, callbacks, cfg.ckpt_path)
        status |= {"value": metrics.get(cfg.monitor), "metrics": metrics, "weights": weights}
        if is_pruned(callbacks):
            status["state"] = "pruned"
    log.info(run_summary.closing(metrics, weights, run, run.read_status()["duration_s"]))
    run.require_recorded()
    return metrics.get(cfg.monitor)


def surroundings(run: RunFolder) -> dict[str, Any]:
    """What a trainer is told of where it trains, so that it does not look for itself."""
    return {
        "default_root_dir": str(run.path),
        # Lightning would take a surrounding SLURM allocation for its own.
        "plugins": [TorchElasticEnvironment() if torchrun.environment() else LightningEnvironment()],
    }


def find_value(
    cfg: DictConfig,
    config: dict[str, Any],
    record: dict[str, Any],
    module: ImageClassifier,
    datamodule: ImageDataModule,
    run: RunFolder,
) -> None:
    """Do what `tune=…` asks for instead of training."""
    from project.training.tuning.command import show, tune

    def make_trainer(**options: Any) -> L.Trainer:
        bare = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
        trainer: L.Trainer = build(config, "trainer", **surroundings(run), **bare, **options)
        return trainer

    trainer, folder = make_trainer(), run.path / "tune"
    if not trainer.is_global_zero:
        logging.getLogger("project").setLevel(logging.WARNING)
        tune(cfg.tune, module, datamodule, make_trainer, folder, first=False)
        return
    with run.recording(name=cfg.name, tune=cfg.tune, trial=True, ranks=trainer.world_size) as status:
        replace_text(run.config_file, to_yaml(record))
        log.info(run_summary.opening(config, module.network, trainer, run))
        status |= {
            "value": None,
            "found": tune(cfg.tune, module, datamodule, make_trainer, folder, first=True),
        }
        for logger in build(config, "logger").values():
            show(logger, cfg.tune, folder / f"{cfg.tune}.png")
    run.require_recorded()


def refuse_fewer_epochs(saved: dict[str, Any], max_epochs: int) -> None:
    """Say that a run that goes on has been trained for all epochs that it is to have.

    Raises:
        InputError: for more.
    """
    done = saved["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if 0 < max_epochs < done:
        raise InputError(
            f"trainer.max_epochs={max_epochs}: {done} epochs are done; set at least that, or more to train on"
        )
    if max_epochs == done:
        log.info("%s epochs are done; to train on, set trainer.max_epochs above that", done)


@naming_worker_failures()
def fit_and_evaluate(
    trainer: L.Trainer,
    module: ImageClassifier,
    datamodule: ImageDataModule,
    callbacks: dict[str, Callback],
    ckpt_path: str | None,
) -> tuple[dict[str, float], str]:
    """Train; then validate and test the best weights, or the last where no best ones were chosen.

    Returns:
        The metrics by name, and which weights they are of: `best` or `last`.
    """
    lazy_imports.freeze_gc()
    trainer.fit(module, datamodule, ckpt_path=ckpt_path, weights_only=True)
    metrics = dict(trainer.callback_metrics)
    if is_pruned(callbacks):
        return _plain(metrics), "last"
    path = trainer.strategy.broadcast(best_checkpoint(callbacks) if trainer.is_global_zero else None)
    options: dict[str, Any] = {"ckpt_path": path, "weights_only": True, "verbose": False}
    if datamodule.count("val"):
        trainer.validate(module, datamodule, **options)
        metrics |= trainer.callback_metrics
    trainer.test(module, datamodule, **options)
    metrics |= trainer.callback_metrics
    return _plain(metrics), "best" if path else "last"


def best_checkpoint(callbacks: dict[str, Callback]) -> str | None:
    """Path of the best weights; None if none were chosen, or if their file is damaged, which is told."""
    best = callbacks.get("best")
    path = best.best_model_path if isinstance(best, ModelCheckpoint) else ""
    if path and (problem := checkpoints.find_damage(Path(path))):
        log.warning("%s %s: the last weights are evaluated instead", path, problem)
        return None
    return path or None


def is_pruned(callbacks: dict[str, Callback]) -> bool:
    """Whether a search has given this run up: it is not evaluated then."""
    return any(getattr(callback, "pruned", False) for callback in callbacks.values())


def _plain(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def without_validation(callbacks: dict[str, Callback], scheduler: dict[str, Any]) -> dict[str, Callback]:
    """Leave out the callbacks that wait for a validation metric, and say so.

    Raises:
        InputError: the schedule waits for one.
    """
    if scheduler.get("monitor", "").startswith("val/"):
        raise InputError(
            f"scheduler.monitor={scheduler['monitor']}: there are no validation images (data.val_size=0); "
            "watch training with monitor=train/loss mode=min, or choose another scheduler"
        )
    watching = [
        name
        for name, callback in callbacks.items()
        if isinstance(callback, EarlyStopping | ModelCheckpoint)
        and (callback.monitor or "").startswith("val/")
    ]
    if watching:
        log.info("no validation images: callbacks %s are off, the last weights count", ", ".join(watching))
    return {name: callback for name, callback in callbacks.items() if name not in watching}
