"""Train one run, from its configuration to its result: read this file to see how the pieces meet."""

if __name__ == "__main__":
    from project.commands import train as run_command

    run_command()  # ends the process: wrong input is answered before torch is imported

import logging
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from project.config.derived_values import complete
from project.config.instantiate import ResolvedConfig
from project.config.validation.network import try_task
from project.datamodules.base import SupervisedDataModule
from project.datamodules.task_loaders import TaskLoaders
from project.loggers import tracking
from project.modules.distillation import LearnsFromTeacher
from project.runs import run_summary
from project.runs.hparam_diff import hyperparameters
from project.runs.run_folder import RunContext
from project.runtime import signals
from project.runtime.atomic_files import replace_text
from project.runtime.process import keep_freed_memory, silence_libraries
from project.runtime.yaml_files import to_yaml
from project.training.ddp.launch import run_on_devices
from project.training.fit import (
    best_checkpoint,
    build_callbacks,
    build_trainer,
    check_resumed_config,
    fit_and_evaluate,
    run_scope,
    state_set_by_search,
)

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> float | None:
    """Train, evaluate and record one run, in one process or in one for each device.

    Args:
        cfg: composed from conf/train.yaml.

    Returns:
        The value of `cfg.monitor` for the evaluated weights, None if it was not measured.
    """
    hydra: Any = HydraConfig.get() if HydraConfig.initialized() else None
    complete(cfg, hydra)  # launchers of other packages have not
    context = RunContext.from_config(cfg, hydra)
    with run_scope(context):
        return run_on_devices(lambda: train_rank(cfg, context), cfg, context)


def train_rank(cfg: DictConfig, context: RunContext) -> float | None:
    """Do this process's part of a run: all of it, or that of one DDP rank.

    Raises:
        Stopped: the process received a signal.
    """
    with signals.raise_on_signal():
        silence_libraries()
        keep_freed_memory()
        config = ResolvedConfig(cfg)
        L.seed_everything(cfg.seed, workers=True, verbose=False)
        datamodule: L.LightningDataModule = config.build("data")
        if isinstance(datamodule, SupervisedDataModule):
            datamodule.allow_changed_images = context.resume_force
        module = config.build_task()
        if isinstance(datamodule, TaskLoaders):
            datamodule.leave_out_missing(module)
        if isinstance(module, LearnsFromTeacher):
            from project.inference.load_run import load_teacher  # other runs do without it

            module.set_teacher(load_teacher(module.teacher, config.values))
        try_task(module, config.values)
        if cfg.get("tune"):
            from project.training.tuning.command import run_tuning  # a run does without it

            run_tuning(cfg.tune, config, context, module, datamodule)
            return None
        callbacks = build_callbacks(config, context, datamodule)
        loggers = list(config.build("logger").values())
        trainer = build_trainer(config, context, callbacks, loggers)
        check_resumed_config(config, context, module)
        fitted = (trainer, module, datamodule, callbacks, context.ckpt_path)
        if not trainer.is_global_zero:
            logging.getLogger("project").setLevel(logging.WARNING)
            return fit_and_evaluate(*fitted)[0].get(cfg.monitor)

        run = context.folder
        facts = {"name": cfg.name, "monitor": cfg.monitor, "mode": cfg.mode, "trial": context.is_debugging}
        with run.recording(**facts, ranks=trainer.world_size) as status, tracking.closing(loggers, status):
            text = to_yaml(config.redacted)
            replace_text(run.config_file, text)
            log.info(run_summary.start_summary(config.values, module, trainer, run))
            tracking.start(loggers, hyperparameters(config.redacted), text)
            metrics, weights = fit_and_evaluate(*fitted)
            status |= {"value": metrics.get(cfg.monitor), "metrics": metrics, "weights": weights}
            if state := state_set_by_search(callbacks):
                status["state"] = state
            if not context.is_debugging:
                tracking.log_results(loggers, metrics, cfg.monitor)
            tracking.send_checkpoint(loggers, best_checkpoint(callbacks) if weights == "best" else None)
        cases = getattr(datamodule, "CASES", "images")
        log.info(run_summary.end_summary(metrics, weights, run, run.read_status(), cases))
        run.require_recorded()
        return metrics.get(cfg.monitor)
