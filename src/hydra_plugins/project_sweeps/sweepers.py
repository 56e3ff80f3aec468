"""Sweepers under the name that Hydra requires. Imported at every start; what they stand for when used."""

from abc import abstractmethod
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class Found(Sweeper):
    """What Hydra finds of a sweeper; to make one is to make what it stands for."""

    def __new__(cls, **options: Any) -> Any:
        """Import the sweeper and make it."""
        return cls.sweeper()(**options)

    @classmethod
    @abstractmethod
    def sweeper(cls) -> type[Sweeper]:
        """Import it."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Never called: nothing is an instance of this class."""
        raise NotImplementedError

    def sweep(self, arguments: list[str]) -> Any:
        """Never called: nothing is an instance of this class."""
        raise NotImplementedError


class GridSweeper(Found):
    """`hydra/sweeper=grid`."""

    @classmethod
    def sweeper(cls) -> type[Sweeper]:
        """Import it."""
        from project.sweeps.sweepers.grid import Grid

        return Grid


class OptunaSweeper(Found):
    """`hydra/sweeper=optuna`."""

    @classmethod
    def sweeper(cls) -> type[Sweeper]:
        """Import it, and Optuna with it."""
        from project.sweeps.sweepers.search import Search

        return Search
