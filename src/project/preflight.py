"""Before a run: its configuration is checked and its folder found or made, without importing torch."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from project.checks import find_problems
from project.command_line import ending_on_errors
from project.errors import InputError
from project.runs.folder import RunFolder, claim, find_run, run_of_checkpoint


class Preflight(Callback):
    """Hydra's hook before a run: refuse a wrong configuration, find or make the run folder."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the configuration of a single run and give it a folder of its own."""
        HydraConfig.instance().set_config(config)
        with ending_on_errors():  # Hydra would turn an exception of a callback into a warning
            earlier = _earlier_run(config)
            if earlier is not None:
                _continue(config, earlier)
            _check(config)
            folder = earlier.path if earlier is not None else claim(config.hydra.run.dir)
            with read_write(config.hydra.run):
                config.hydra.run.dir = str(folder)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the configuration of a sweep's job."""
        if config.hydra.mode == RunMode.MULTIRUN:
            with ending_on_errors():
                _check(config)


def _check(config: DictConfig) -> None:
    if problems := dict.fromkeys(find_problems(config)):  # many keys may follow from one wrong value
        raise InputError("\n".join(problems))


def _earlier_run(config: DictConfig) -> RunFolder | None:
    """The run to continue, if one is named; `ckpt_path` is set to the checkpoint."""
    if config.resume is not None:
        run = find_run(str(config.resume), config.paths.outputs)
        if config.ckpt_path is None:
            if not run.last_checkpoint.exists():
                raise InputError(
                    f"resume={config.resume}: {run.last_checkpoint} is missing; nothing to go on from"
                )
            config.ckpt_path = str(run.last_checkpoint)
        return run
    if config.ckpt_path is None:
        return None
    if "://" in str(config.ckpt_path) or not Path(str(config.ckpt_path)).is_file():
        raise InputError(f"ckpt_path={config.ckpt_path}: no such file")
    return run_of_checkpoint(str(config.ckpt_path))


def _continue(config: DictConfig, run: RunFolder) -> None:
    """Replace the configuration by that of an earlier run, with the command line's values on top."""
    earlier = OmegaConf.load(run.composed_file)
    assert isinstance(earlier, DictConfig)
    ckpt_path, groups = config.ckpt_path, set(config.hydra.runtime.choices)
    for override in config.hydra.overrides.task:
        key, _, value = override.lstrip("+~").partition("=")
        if key in ("resume", "ckpt_path"):
            continue
        if key in groups or override.startswith("~"):
            raise InputError(
                f"{override}: a run goes on with its own {key}; give single values, or start a new run"
            )
        OmegaConf.update(earlier, key, OmegaConf.create(f"value: {value}").value)
    with open_dict(config):
        for key in [str(name) for name in config if name != "hydra"]:
            del config[key]
        config.merge_with(earlier)
    with read_write(config.hydra.runtime):
        config.hydra.runtime.choices = OmegaConf.load(run.hydra_file).hydra.runtime.choices
    config.ckpt_path = ckpt_path
