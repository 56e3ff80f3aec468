"""Launchers under the name that Hydra requires. Imported at every start: nothing heavy above."""

from project.sweeps.local import LocalProcesses
from project.sweeps.ray_cluster import RayTasks
from project.sweeps.slurm import SlurmJobs


class LocalLauncher(LocalProcesses):
    """`hydra/launcher=local`."""


class SlurmLauncher(SlurmJobs):
    """`hydra/launcher=slurm`."""


class RayLauncher(RayTasks):
    """`hydra/launcher=ray`."""
