"""The default launcher and its engine, which run jobs as processes on this machine."""

import importlib
import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Annotated, Literal

from hydra.types import TaskFunction
from omegaconf import DictConfig

from project.errors import InputError
from project.runtime.bounds import Range
from project.runtime.devices import available_cpus, visible_gpus
from project.runtime.lazy_imports import gc_disabled, import_pending
from project.runtime.process import flush_streams
from project.sweeps.device_slots import DeviceLease, DeviceRequest, DeviceSlots, request_devices
from project.sweeps.engine import POLL_S, Engine, JobExit, JobProcess
from project.sweeps.job_process import JobMessage, JobSpec, become_job, lease_environment, run_job
from project.sweeps.launchers.base import ScheduledLauncher
from project.sweeps.watchdog import JobLimits, Watchdog

ALWAYS_NEEDED = (
    *("project.train", "torch.utils.tensorboard", "torchmetrics.classification", "torch._dynamo"),
    *("lightning.pytorch.strategies", "torch.distributed.algorithms.ddp_comm_hooks.default_hooks"),
)
"""Modules that every job imports."""
DEFAULT_START: Literal["fork", "fresh"] = "fork" if sys.platform == "linux" else "fresh"
"""On other systems, libraries may fail after a fork."""


class LocalLauncher(ScheduledLauncher):
    """Run each job as processes on this machine, one per rank, with one queue for all devices.

    Args:
        jobs: maximum number of simultaneous jobs (`auto`: limited by the devices alone).
        gpus: indices of the GPUs to use (`auto`: all visible GPUs).
        gpus_per_job: GPUs per job; below 1, several jobs share a GPU (`auto`: `trainer.devices`).
        start: `fork` copies this process after all imports; `fresh` starts a new interpreter per job; `auto`:
            `fork` on Linux, otherwise `fresh`.
        fail_fast: stop the sweep when a job fails.
        grace_s: time that jobs have to stop when the sweep is stopped [s].
        stuck_after_s: time after which a job that writes nothing to its folder is stopped [s] (None: never).
        job_timeout_s: time after which a job is stopped [s] (None: never).
    """

    def __init__(
        self,
        jobs: Annotated[int, Range(1)] | Literal["auto"] = "auto",
        gpus: Sequence[int] | Literal["auto"] = "auto",
        gpus_per_job: Annotated[float, Range(above=0)] | Literal["auto"] = "auto",
        start: Literal["auto", "fork", "fresh"] = "auto",
        fail_fast: bool = False,
        grace_s: Annotated[float, Range(0)] = 30.0,
        stuck_after_s: Annotated[float, Range(above=0)] | None = None,
        job_timeout_s: Annotated[float, Range(above=0)] | None = None,
    ) -> None:
        super().__init__(fail_fast, grace_s)
        self.stuck_after_s = stuck_after_s
        self.job_timeout_s = job_timeout_s
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

    def make_engine(self, num_jobs: int, targets: Iterable[str]) -> Engine:
        if self.start == "fork":
            preload([*ALWAYS_NEEDED, *sorted({target.rpartition(".")[0] for target in targets})])
        jobs = None if self.jobs == "auto" else self.jobs
        slots = DeviceSlots(available_cpus(), self._gpu_names, jobs, num_jobs)
        limits = JobLimits(self.stuck_after_s or math.inf, self.job_timeout_s or math.inf, self.grace_s)
        return ProcessEngine(self.function, slots, self.start, limits)

    def request_devices(self, config: DictConfig) -> DeviceRequest:
        if config.trainer.num_nodes > 1:
            raise InputError(
                f"trainer.num_nodes={config.trainer.num_nodes}: hydra/launcher=local has one machine; use "
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


class ProcessEngine(Engine):
    """Run each job as a process group on leased devices of this machine.

    `fork` copies this process within milliseconds, `fresh` starts a new interpreter.
    """

    def __init__(
        self,
        function: TaskFunction,
        slots: DeviceSlots,
        method: Literal["fork", "fresh"] = "fork",
        limits: JobLimits | None = None,
    ) -> None:
        self.function = function
        self.slots = slots
        self.method = method
        self.limits = limits or JobLimits()
        self._running: dict[int, tuple[JobProcess, DeviceLease, Watchdog]] = {}  # by number of the job

    def has_capacity(self) -> bool:
        return not self.slots.are_full

    def start(self, spec: JobSpec) -> bool:
        if (lease := self.slots.lease(spec.request)) is None:
            return False
        if self.method == "fork":
            process = self._fork(spec, lease)
        else:
            process = JobProcess.start_fresh(JobMessage(spec, lease_environment(lease), os.getpid()))
        self._running[spec.number] = (process, lease, Watchdog(process, spec.folder, self.limits))
        return True

    def wait(self, timeout_s: float) -> list[JobExit]:
        deadline = time.monotonic() + timeout_s
        while not (ended := self._collect()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return ended

    def interrupt(self) -> None:
        for process, *_ in self._running.values():
            process.interrupt()  # the leader interrupts the other ranks

    def kill(self) -> None:
        for process, *_ in self._running.values():
            process.kill()

    def _collect(self) -> list[JobExit]:
        ended = []
        for number, (process, lease, watchdog) in list(self._running.items()):
            if (code := process.poll()) is not None:
                del self._running[number]
                self.slots.release(lease)
                ended.append(JobExit(number, code, error=watchdog.error))
            else:
                watchdog.check()
        return ended

    def _fork(self, spec: JobSpec, lease: DeviceLease) -> JobProcess:
        flush_streams()
        parent = os.getpid()
        pid = os.fork()
        if pid:
            with suppress(OSError):  # in both processes, to avoid a race
                os.setpgid(pid, pid)
            return JobProcess(pid)
        code = 1
        try:
            become_job(spec.log_file, lease_environment(lease), parent)
            if (torch := sys.modules.get("torch")) is not None:
                torch.set_num_threads(lease.threads * lease.request.ranks)
            code = run_job(spec, self.function)
        finally:
            os._exit(code)


def preload(modules: Iterable[str]) -> None:
    """Import modules once for all forked jobs; a job reports a module that cannot be imported."""
    with gc_disabled():
        for name in filter(None, modules):
            with suppress(Exception):
                importlib.import_module(name)
        import_pending()
