"""Pool of this machine's devices, which are leased to the jobs of a sweep."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from project.errors import InputError
from project.runtime.torchrun import num_devices


@dataclass(frozen=True)
class DeviceRequest:
    """Devices that one job needs."""

    ranks: int  # number of processes
    gpus: float = 0.0  # one per rank; below 1: share of one GPU; 0: CPU only


@dataclass(frozen=True)
class DeviceLease:
    """Devices that a running job holds."""

    request: DeviceRequest
    gpus: tuple[str, ...]
    threads: int


@dataclass
class DeviceSlots:
    """Pool of this machine's devices.

    Args:
        cpus: number of CPUs that this process may use.
        gpus: names of GPUs.
        max_jobs: maximum number of simultaneous jobs (None: limited by devices alone).
        num_jobs: number of jobs of the sweep; fewer jobs than devices get more threads each.
    """

    cpus: int
    gpus: Sequence[str] = ()
    max_jobs: int | None = None
    num_jobs: int = 1
    _free: dict[str, float] = field(init=False)
    _ranks: int = field(init=False, default=0)
    _running: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._free = dict.fromkeys(self.gpus, 1.0)

    @property
    def are_full(self) -> bool:
        """True while no job can start."""
        if not self._running:
            return False
        if self.max_jobs is not None:
            return self._running >= self.max_jobs
        return max(self._free.values()) < 1e-9 if self._free else self._ranks >= self.cpus

    def lease(self, request: DeviceRequest) -> DeviceLease | None:
        """Lease devices to a job; return None if too few are free."""
        if self._running and self._running >= (self.max_jobs or math.inf):
            return None
        gpus: tuple[str, ...] | None = ()
        if request.gpus:
            gpus = self._choose_gpus(request.gpus)
        elif self.max_jobs is None and self._ranks and self._ranks + request.ranks > self.cpus:
            return None  # a job with more ranks than the machine has CPUs runs alone
        if gpus is None:
            return None
        for gpu in gpus:
            self._free[gpu] -= min(request.gpus, 1.0)
        self._running += 1
        self._ranks += request.ranks
        return DeviceLease(request, gpus, self._threads(request))

    def release(self, lease: DeviceLease) -> None:
        """Return a job's devices to the pool."""
        for gpu in lease.gpus:
            self._free[gpu] = min(1.0, self._free[gpu] + min(lease.request.gpus, 1.0))
        self._running -= 1
        self._ranks -= lease.request.ranks

    def _choose_gpus(self, wanted: float) -> tuple[str, ...] | None:
        share, number = min(wanted, 1.0), max(1, round(wanted))
        roomy = [gpu for gpu, free in self._free.items() if free >= share - 1e-9]
        roomy.sort(key=lambda gpu: self._free[gpu], reverse=True)  # spread the shares evenly over the GPUs
        return tuple(roomy[:number]) if len(roomy) >= number else None

    def _threads(self, request: DeviceRequest) -> int:
        room = int(len(self.gpus) / request.gpus) if request.gpus else max(1, self.cpus // request.ranks)
        num_simultaneous = max(1, min(self.max_jobs or room, self.num_jobs))
        return max(1, self.cpus // (request.ranks * num_simultaneous))


def request_devices(
    trainer: Mapping[str, Any],
    available: int | None,
    gpus_per_job: float | str,
    key: str = "hydra.launcher.gpus_per_job",
    *,
    allow_spare: bool = False,
) -> DeviceRequest:
    """Derive a job's devices on each of its nodes from its trainer configuration.

    Args:
        trainer: configuration with `accelerator` and `devices`.
        available: number of GPUs of this machine; None if the job runs on an unknown machine.
        gpus_per_job: launcher setting: a number, a share below 1, or `auto` for `trainer.devices`.
        key: key of `gpus_per_job`, for error messages.
        allow_spare: allow `gpus_per_job` to exceed the number of devices that the job uses.

    Raises:
        InputError: the GPUs are missing or unknown, or the settings contradict each other.
    """
    accelerator, devices = str(trainer["accelerator"]), trainer["devices"]
    given = None if gpus_per_job == "auto" else float(gpus_per_job)
    is_any = devices in ("auto", -1, "-1")
    number = 1 if is_any else max(1, num_devices(devices))
    is_on_gpu = accelerator in ("gpu", "cuda")
    if accelerator == "auto":
        if given is None and available is None:
            raise InputError(
                "trainer.accelerator=auto: the devices of the cluster's nodes are unknown here; set "
                "trainer.accelerator=gpu or trainer.accelerator=cpu"
            )
        is_on_gpu = bool(given if available is None else available)
    if not is_on_gpu:
        return DeviceRequest(number)
    if available == 0:
        raise InputError(
            f"trainer.accelerator={accelerator}: torch finds no GPU here; set trainer.accelerator=cpu or auto"
        )
    if available is not None and not isinstance(devices, int | str):
        raise InputError(
            f"trainer.devices={list(devices)}: a sweep chooses the GPUs of each job; set "
            f"trainer.devices={number} and hydra.launcher.gpus={list(devices)}"
        )
    if given is not None:
        ranks = max(1, int(given))
        is_mismatch = number > ranks if allow_spare else number != ranks
        if not given or (is_mismatch and not is_any):
            remedy = f"trainer=ddp trainer.devices={ranks}" if ranks > 1 else "trainer.devices=1"
            raise InputError(f"{key}={gpus_per_job}: a job trains on trainer.devices={devices}; set {remedy}")
    elif is_any and available is None:
        raise InputError(
            f"trainer.devices={devices}: the number of GPUs of a node is unknown here; set trainer.devices "
            f"or {key}"
        )
    if given is None or (allow_spare and not is_any):
        wanted: float = available if is_any and available else number
    else:
        wanted = given
    if available is not None and wanted > available:
        raise InputError(
            f"trainer.devices={devices}: this machine has {available} GPUs; choose at most that many, or "
            "trainer.accelerator=cpu"
        )
    return DeviceRequest(max(1, int(wanted)), wanted)
