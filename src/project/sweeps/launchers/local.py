"""The default launcher: jobs in processes of this machine."""

import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Literal

from omegaconf import DictConfig

from project.errors import InputError
from project.runtime.devices import available_cpus, visible_gpus
from project.sweeps.device_slots import Need, Slots, need_of
from project.sweeps.launchers.base import StreamingLauncher
from project.sweeps.process_engine import Engine, ProcessEngine, preload
from project.sweeps.settings import Count, Positive, Seconds, checked_options

ALWAYS_NEEDED = (
    *("project.train", "torch.utils.tensorboard", "torchmetrics.classification", "torch._dynamo"),
    *("lightning.pytorch.strategies", "torch.distributed.algorithms.ddp_comm_hooks.default_hooks"),
)

DEFAULT_START: Literal["fork", "fresh"] = "fork" if sys.platform == "linux" else "fresh"


class LocalProcesses(StreamingLauncher):
    """A process for each rank of each job, in one queue for all devices.

    Args:
        jobs: at a time; `auto`: as many as there are devices.
        gpus: numbers of those to use; `auto`: all that are visible.
        gpus_per_job: `auto`: as `trainer.devices` says; a number; below 1: several jobs share one.
        start: `fork` copies a process that has imported everything; `fresh` starts an interpreter a job;
            `auto`: fork on Linux, fresh elsewhere, where libraries do not bear being forked.
        fail_fast: stop the sweep when a job fails.
        grace_s: seconds that jobs have to stop when the sweep is stopped.
    """

    @checked_options("hydra.launcher")
    def __init__(
        self,
        jobs: Count | Literal["auto"] = "auto",
        gpus: Sequence[int] | Literal["auto"] = "auto",
        gpus_per_job: Positive | Literal["auto"] = "auto",
        start: Literal["auto", "fork", "fresh"] = "auto",
        fail_fast: bool = False,
        grace_s: Seconds = 30.0,
    ) -> None:
        super().__init__(fail_fast, grace_s)
        share = gpus_per_job
        if share != "auto" and share > 1 and share != int(share):
            raise InputError(
                f"hydra.launcher.gpus_per_job={share}: give a whole number, a share such as 0.25, or auto"
            )
        if len(set(gpus)) < len(gpus):
            raise InputError(f"hydra.launcher.gpus={list(gpus)}: names a GPU twice; leave one out")
        self.jobs = jobs
        self.gpus = gpus
        self.gpus_per_job = gpus_per_job
        self.start: Literal["fork", "fresh"] = start if start != "auto" else DEFAULT_START

    def engine(self, expected: int, targets: Iterable[str]) -> Engine:
        """See `StreamingLauncher`."""
        if self.start == "fork":
            preload([*ALWAYS_NEEDED, *sorted({target.rpartition(".")[0] for target in targets})])
        slots = Slots(
            cpus=available_cpus(),
            gpus=self._visible_gpus,
            jobs=None if self.jobs == "auto" else self.jobs,
            expected=expected,
        )
        return ProcessEngine(self.function, slots, self.start)

    def need(self, config: DictConfig) -> Need:
        """See `StreamingLauncher`."""
        if config.trainer.num_nodes > 1:
            raise InputError(
                f"trainer.num_nodes={config.trainer.num_nodes}: hydra/launcher=local has one machine; take "
                "hydra/launcher=slurm, or trainer.num_nodes=1"
            )
        return need_of(config.trainer, len(self._visible_gpus), self.gpus_per_job)

    @cached_property
    def _visible_gpus(self) -> list[str]:
        """Names of the GPUs to use, as the jobs' CUDA_VISIBLE_DEVICES takes them; CUDA is not started."""
        visible = visible_gpus()
        if self.gpus == "auto":
            return visible
        if wrong := [number for number in self.gpus if not 0 <= number < len(visible)]:
            raise InputError(
                f"hydra.launcher.gpus={list(self.gpus)}: there is no GPU {wrong[0]}; this machine has "
                f"{len(visible)}, counted from 0"
            )
        return [visible[number] for number in self.gpus]
