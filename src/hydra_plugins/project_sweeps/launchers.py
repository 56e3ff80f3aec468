"""Launchers under the name that Hydra requires. Imported at every start; what they stand for when used."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class Found(Launcher):
    """What Hydra finds of a launcher; to make one is to make what it stands for."""

    def __new__(cls, **options: Any) -> Any:
        """Import the launcher and make it."""
        return cls.launcher()(**options)

    @classmethod
    @abstractmethod
    def launcher(cls) -> type[Launcher]:
        """Import it."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Never called: nothing is an instance of this class."""
        raise NotImplementedError

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Never called: nothing is an instance of this class."""
        raise NotImplementedError


class LocalLauncher(Found):
    """`hydra/launcher=local`."""

    @classmethod
    def launcher(cls) -> type[Launcher]:
        """Import it."""
        from project.sweeps.launchers.local import LocalProcesses

        return LocalProcesses


class SlurmLauncher(Found):
    """`hydra/launcher=slurm`."""

    @classmethod
    def launcher(cls) -> type[Launcher]:
        """Import it."""
        from project.sweeps.launchers.slurm import SlurmJobs

        return SlurmJobs


class RayLauncher(Found):
    """`hydra/launcher=ray`."""

    @classmethod
    def launcher(cls) -> type[Launcher]:
        """Import it."""
        from project.sweeps.launchers.ray_cluster import RayTasks

        return RayTasks
