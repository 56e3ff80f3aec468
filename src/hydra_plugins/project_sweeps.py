"""Hydra plugins for our launchers and sweepers, imported from `project.sweeps` when first used."""

from importlib import import_module
from typing import Any

from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper

from project.runtime.bounds import check_arguments


class LazyPlugin:
    """Plugin whose constructor imports the class `implementation`, checks its arguments and creates it.

    The methods are never called, but Hydra ignores abstract plugins.
    """

    implementation: str

    def __new__(cls, **options: Any) -> Any:
        module, _, name = cls.implementation.rpartition(".")
        plugin_class = getattr(import_module(module), name)
        group = "hydra.launcher" if issubclass(cls, Launcher) else "hydra.sweeper"
        return plugin_class(**check_arguments(group, plugin_class, options))

    def setup(self, **options: Any) -> None:
        raise NotImplementedError

    def launch(self, job_overrides: Any, initial_job_idx: int) -> Any:
        raise NotImplementedError

    def sweep(self, arguments: list[str]) -> Any:
        raise NotImplementedError


class LocalLauncher(LazyPlugin, Launcher):
    """Plugin of `hydra/launcher=local`."""

    implementation = "project.sweeps.launchers.local.LocalLauncher"


class SlurmLauncher(LazyPlugin, Launcher):
    """Plugin of `hydra/launcher=slurm`."""

    implementation = "project.sweeps.launchers.slurm.SlurmLauncher"


class RayLauncher(LazyPlugin, Launcher):
    """Plugin of `hydra/launcher=ray`."""

    implementation = "project.sweeps.launchers.ray.RayLauncher"


class GridSweeper(LazyPlugin, Sweeper):
    """Plugin of `hydra/sweeper=grid`."""

    implementation = "project.sweeps.sweepers.grid.GridSweeper"


class OptunaSweeper(LazyPlugin, Sweeper):
    """Plugin of `hydra/sweeper=optuna`."""

    implementation = "project.sweeps.sweepers.optuna_search.OptunaSweeper"


class AshaSweeper(LazyPlugin, Sweeper):
    """Plugin of `hydra/sweeper=asha`."""

    implementation = "project.sweeps.sweepers.asha_search.AshaSweeper"


class PbtSweeper(LazyPlugin, Sweeper):
    """Plugin of `hydra/sweeper=pbt`."""

    implementation = "project.sweeps.sweepers.pbt_search.PbtSweeper"
