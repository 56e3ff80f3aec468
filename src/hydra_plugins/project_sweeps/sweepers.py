"""Sweepers by the names in `conf/hydra/sweeper`."""

from hydra.plugins.sweeper import Sweeper

from . import Deferred


class GridSweeper(Deferred, Sweeper):
    """Plugin of `hydra/sweeper=grid`."""

    implementation = "project.sweeps.sweepers.grid.GridSweeper"


class OptunaSweeper(Deferred, Sweeper):
    """Plugin of `hydra/sweeper=optuna`."""

    implementation = "project.sweeps.sweepers.search.OptunaSweeper"
