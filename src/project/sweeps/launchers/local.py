"""The default launcher: jobs as processes of this machine."""

import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Annotated, Literal

from omegaconf import DictConfig

from project.errors import InputError
from project.runtime.bounds import Range
from project.runtime.devices import available_cpus, visible_gpus
from project.sweeps.device_slots import DeviceRequest, DeviceSlots, request_devices
from project.sweeps.launchers.base import ScheduledLauncher
from project.sweeps.local_engine import Engine, ProcessEngine, preload

ALWAYS_NEEDED = (
    *("project.train", "torch.utils.tensorboard", "torchmetrics.classification", "torch._dynamo"),
    *("lightning.pytorch.strategies", "torch.distributed.algorithms.ddp_comm_hooks.default_hooks"),
)
"""Modules that every job imports."""
DEFAULT_START: Literal["fork", "fresh"] = "fork" if sys.platform == "linux" else "fresh"
"""Libraries of other systems do not survive a fork."""


class LocalLauncher(ScheduledLauncher):
    """Run each job as processes of this machine, one a rank, in one queue for all devices.

    Args:
        jobs: most jobs at a time (`auto`: as many as there are devices).
        gpus: numbers of the GPUs to use (`auto`: all visible ones).
        gpus_per_job: GPUs of a job; below 1, several jobs share one (`auto`: `trainer.devices`).
        start: `fork` copies a process that has imported everything; `fresh` starts an interpreter a job;
            `auto` forks on Linux.
        fail_fast: stop the sweep when a job fails.
        grace_s: time that jobs have to stop when the sweep is stopped [s].
    """

    def __init__(
        self,
        jobs: Annotated[int, Range(1)] | Literal["auto"] = "auto",
        gpus: Sequence[int] | Literal["auto"] = "auto",
        gpus_per_job: Annotated[float, Range(above=0)] | Literal["auto"] = "auto",
        start: Literal["auto", "fork", "fresh"] = "auto",
        fail_fast: bool = False,
        grace_s: Annotated[float, Range(0)] = 30.0,
    ) -> None:
        super().__init__(fail_fast, grace_s)
        if gpus_per_job != "auto" and gpus_per_job > 1 and gpus_per_job != int(gpus_per_job):
            raise InputError(
                f"hydra.launcher.gpus_per_job={gpus_per_job}: give a whole number, a share below 1, or auto"
            )
        if len(set(gpus)) < len(gpus):
            raise InputError(f"hydra.launcher.gpus={list(gpus)}: names a GPU twice; leave one out")
        self.jobs = jobs
        self.gpus = gpus
        self.gpus_per_job = gpus_per_job
        self.start: Literal["fork", "fresh"] = start if start != "auto" else DEFAULT_START

    def make_engine(self, expected: int, targets: Iterable[str]) -> Engine:
        if self.start == "fork":
            preload([*ALWAYS_NEEDED, *sorted({target.rpartition(".")[0] for target in targets})])
        jobs = None if self.jobs == "auto" else self.jobs
        slots = DeviceSlots(available_cpus(), self._gpu_names, jobs, expected)
        return ProcessEngine(self.function, slots, self.start)

    def request_devices(self, config: DictConfig) -> DeviceRequest:
        if config.trainer.num_nodes > 1:
            raise InputError(
                f"trainer.num_nodes={config.trainer.num_nodes}: hydra/launcher=local has one machine; take "
                "hydra/launcher=slurm, or trainer.num_nodes=1"
            )
        return request_devices(config.trainer, len(self._gpu_names), self.gpus_per_job)

    @cached_property
    def _gpu_names(self) -> list[str]:
        """Names of the GPUs to use, as in CUDA_VISIBLE_DEVICES, found without starting CUDA."""
        visible = visible_gpus()
        if self.gpus == "auto":
            return visible
        if wrong := [number for number in self.gpus if not 0 <= number < len(visible)]:
            raise InputError(
                f"hydra.launcher.gpus={list(self.gpus)}: there is no GPU {wrong[0]}; this machine has "
                f"{len(visible)}, counted from 0"
            )
        return [visible[number] for number in self.gpus]
