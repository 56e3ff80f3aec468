"""What Hydra does around a job, without the copies that a process of its own does not need."""

import os
import pickle
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, env_override
from hydra.types import TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from project.config.hydra_patches import Callbacks, allowing
from project.config.hydra_security import BUILT_BY_HYDRA
from project.runtime.files import replace_text
from project.runtime.yaml_text import to_yaml


def run_task(config: DictConfig, function: TaskFunction, folder: Path) -> JobReturn:
    """Do what `hydra.core.utils.run_job` does, for the only job of this process.

    Args:
        config: with Hydra's node.
        function: the task.
        folder: where the job writes; it becomes the working directory if `hydra.job.chdir` says so.

    Returns:
        What the task returned or raised.
    """
    HydraConfig.instance().cfg = config  # type: ignore[assignment]  # without set_config's copy
    task_config: DictConfig = pickle.loads(pickle.dumps(config))  # noqa: S301 (a copy)
    with open_dict(task_config):
        del task_config["hydra"]
    overrides = list(config.hydra.overrides.task)
    result = JobReturn(overrides=overrides, cfg=task_config, task_name=config.hydra.job.name)
    if config.hydra.job.chdir:
        os.chdir(folder)
    result.working_dir = str(Path.cwd())
    with allowing(BUILT_BY_HYDRA):
        configure_log(config.hydra.job_logging, config.hydra.verbose)
        callbacks = Callbacks(config)
    if config.hydra.output_subdir is not None:
        _save(config, task_config, folder / config.hydra.output_subdir)
    with env_override(config.hydra.job.env_set):
        callbacks.on_job_start(config=config, task_function=function)
        try:
            result.return_value = function(task_config)
            result.status = JobStatus.COMPLETED
        except Exception as error:
            result.return_value, result.status = error, JobStatus.FAILED
    callbacks.on_job_end(config=config, job_return=result)
    return result


def _save(config: DictConfig, task_config: DictConfig, folder: Path) -> None:
    hydra = OmegaConf.to_container(config.hydra, enum_to_str=True)
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "config.yaml", to_yaml(task_config))
    replace_text(folder / "hydra.yaml", to_yaml({"hydra": hydra}))
    replace_text(folder / "overrides.yaml", to_yaml(config.hydra.overrides.task))
