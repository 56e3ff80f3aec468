"""Launchers by the names in `conf/hydra/launcher`."""

from hydra.plugins.launcher import Launcher

from . import Deferred


class LocalLauncher(Deferred, Launcher):
    """Plugin of `hydra/launcher=local`."""

    implementation = "project.sweeps.launchers.local.LocalLauncher"


class SlurmLauncher(Deferred, Launcher):
    """Plugin of `hydra/launcher=slurm`."""

    implementation = "project.sweeps.launchers.slurm.SlurmLauncher"


class RayLauncher(Deferred, Launcher):
    """Plugin of `hydra/launcher=ray`."""

    implementation = "project.sweeps.launchers.ray.RayLauncher"
