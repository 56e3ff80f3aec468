"""Sweepers under the name that Hydra requires. Imported at every start: nothing heavy above."""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from project.sweeps.grids import Grid


class GridSweeper(Grid):
    """`hydra/sweeper=grid`."""


class OptunaSweeper(Sweeper):
    """`hydra/sweeper=optuna`: makes a `Search`, for which Optuna is imported only then."""

    def __init__(self, **options: Any) -> None:
        from project.sweeps.search import Search

        self.search = Search(**options)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See `hydra.plugins.sweeper.Sweeper`."""
        self.search.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        """See `hydra.plugins.sweeper.Sweeper`."""
        self.search.sweep(arguments)
