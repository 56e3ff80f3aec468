"""Check the configuration of a run and find or create its folder, without importing torch."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, read_write
from omegaconf.errors import OmegaConfBaseException

from project.config import resume
from project.config.cli import exit_on_errors
from project.config.derived_values import complete
from project.config.validation import find_problems
from project.config.validation.command_request import command_request, overrides_of
from project.config.validation.paths import find_misplaced_outputs
from project.errors import InputError
from project.runs.folders import create_folder, next_free_path
from project.runtime import lazy_imports, signals, torchrun

SWEEP_KEYS = ("hydra.sweeper.", "hydra.launcher.", "hydra.sweep.", "hydra/sweeper=", "hydra/launcher=")
"""Prefixes of overrides that affect only sweeps."""


class Preflight(Callback):
    """Hydra callback that checks the configuration and finds or creates the run folder."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the configuration of a single run and create its folder."""
        HydraConfig.instance().set_config(config)
        with exit_on_errors():  # Hydra would turn exceptions of callbacks into warnings
            sources = config.hydra.runtime.config_sources
            conf = next(Path(source.path) for source in sources if source.provider == "main")
            try:
                folder = torchrun.find_restarted_run(config.hydra)
            except OmegaConfBaseException:  # the folder name depends on an invalid value
                _check(config)
                raise
            resume.resume_restarted_run(folder)
            earlier = resume.configure(config, conf)
            complete(config)
            _set_expected_folder(config, earlier.path if earlier is not None else folder)
            _check(config)
            _refuse_sweep_keys(config)
            if earlier is not None:
                earlier.require_writable()
                folder = earlier.path
            elif folder is None:
                named = "hydra.run.dir" in command_request(config).keys
                with signals.postpone_exit():
                    folder = create_folder(
                        torchrun.run_folder(config.hydra), "hydra.run.dir" if named else "paths.outputs"
                    )
            with read_write(config.hydra.run):
                config.hydra.run.dir = str(folder)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a sweep in processes that torchrun or srun started for one run."""
        lazy_imports.freeze_gc()  # the sweep's process runs for long
        with exit_on_errors():
            torchrun.refuse_sweep()
            for text in overrides_of(config.hydra):
                if text.startswith("hydra.run.dir="):
                    raise InputError(f"{text}: for single runs only; set hydra.sweep.dir=FOLDER for a sweep")

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the configuration of a sweep's job, unless the launcher has checked it."""
        ours = str(config.hydra.launcher.get("_target_")).startswith("hydra_plugins.project_sweeps.")
        if config.hydra.mode == RunMode.MULTIRUN and not ours:
            with exit_on_errors():
                complete(config)
                _check(config)


def _set_expected_folder(config: DictConfig, known: Path | None) -> None:
    """Set the folder that the run will get, which the checks of outputs need."""
    with suppress(OmegaConfBaseException):  # reported by another check
        folder = known or next_free_path(torchrun.run_folder(config.hydra))
        with read_write(config.hydra.runtime):
            config.hydra.runtime.output_dir = str(folder.absolute())
        HydraConfig.instance().set_config(config)


def _refuse_sweep_keys(config: DictConfig) -> None:
    for text in overrides_of(config.hydra):
        if text.lstrip("+~").startswith(SWEEP_KEYS):
            raise InputError(f"{text}: has no effect on a single run; add -m to sweep, or leave it out")
    for key, without in (("seeds", 1), ("folds", None)):
        if (value := config.get(key)) != without:
            raise InputError(f"{key}={value}: affects only sweeps; add -m")


def _check(config: DictConfig) -> None:
    for find in (find_problems, find_misplaced_outputs, torchrun.find_mismatch):
        if problems := dict.fromkeys(find(config)):  # later problems may be consequences of these
            raise InputError("\n".join(problems))
