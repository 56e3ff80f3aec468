"""Sweepers under the name that Hydra requires. Imported at every start: nothing heavy above."""

from project.sweeps.grids import Grid


class GridSweeper(Grid):
    """`hydra/sweeper=grid`."""
