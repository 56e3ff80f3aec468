"""Launchers and sweepers where Hydra looks for them, imported from `project.sweeps` when one is used."""

from importlib import import_module
from typing import Any

from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper


class Deferred:
    """Plugin whose constructor imports and makes the class named by `implementation`.

    Its methods are never called; Hydra ignores plugins without them as abstract.
    """

    implementation: str

    def __new__(cls, **options: Any) -> Any:
        module, _, name = cls.implementation.rpartition(".")
        return getattr(import_module(module), name)(**options)

    def setup(self, **options: Any) -> None:
        raise NotImplementedError

    def launch(self, job_overrides: Any, initial_job_idx: int) -> Any:
        raise NotImplementedError

    def sweep(self, arguments: list[str]) -> Any:
        raise NotImplementedError


class LocalLauncher(Deferred, Launcher):
    implementation = "project.sweeps.launchers.local.LocalLauncher"


class SlurmLauncher(Deferred, Launcher):
    implementation = "project.sweeps.launchers.slurm.SlurmLauncher"


class RayLauncher(Deferred, Launcher):
    implementation = "project.sweeps.launchers.ray.RayLauncher"


class GridSweeper(Deferred, Sweeper):
    implementation = "project.sweeps.sweepers.grid.GridSweeper"


class OptunaSweeper(Deferred, Sweeper):
    implementation = "project.sweeps.sweepers.search.OptunaSweeper"
