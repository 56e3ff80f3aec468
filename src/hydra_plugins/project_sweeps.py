"""Launchers and sweepers where Hydra looks for them, imported from `project.sweeps` when one is used."""

from importlib import import_module
from typing import Any

from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper

from project.runtime.bounds import check_arguments


class Deferred:
    """Plugin whose constructor imports, checks and makes the class named by `implementation`.

    Its methods are never called; Hydra ignores plugins without them as abstract.
    """

    implementation: str

    def __new__(cls, **options: Any) -> Any:
        module, _, name = cls.implementation.rpartition(".")
        made = getattr(import_module(module), name)
        group = "hydra.launcher" if issubclass(cls, Launcher) else "hydra.sweeper"
        return made(**check_arguments(group, made, options))

    def setup(self, **options: Any) -> None:
        raise NotImplementedError

    def launch(self, job_overrides: Any, initial_job_idx: int) -> Any:
        raise NotImplementedError

    def sweep(self, arguments: list[str]) -> Any:
        raise NotImplementedError


class LocalLauncher(Deferred, Launcher):
    """Plugin of `hydra/launcher=local`."""

    implementation = "project.sweeps.launchers.local.LocalLauncher"


class SlurmLauncher(Deferred, Launcher):
    """Plugin of `hydra/launcher=slurm`."""

    implementation = "project.sweeps.launchers.slurm.SlurmLauncher"


class RayLauncher(Deferred, Launcher):
    """Plugin of `hydra/launcher=ray`."""

    implementation = "project.sweeps.launchers.ray.RayLauncher"


class GridSweeper(Deferred, Sweeper):
    """Plugin of `hydra/sweeper=grid`."""

    implementation = "project.sweeps.sweepers.grid.GridSweeper"


class OptunaSweeper(Deferred, Sweeper):
    """Plugin of `hydra/sweeper=optuna`."""

    implementation = "project.sweeps.sweepers.optuna_search.OptunaSweeper"
