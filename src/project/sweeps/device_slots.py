"""Devices of this machine, leased to one job of a sweep after the other."""

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
    gpus: float = 0.0  # one a rank; below 1 a share of one GPU; 0 on CPUs


@dataclass(frozen=True)
class DeviceLease:
    """Devices that a running job holds."""

    request: DeviceRequest
    gpus: tuple[str, ...]
    threads: int


@dataclass
class DeviceSlots:
    """Free devices of this machine.

    Args:
        cpus: number of CPUs that this process may use.
        gpus: names of GPUs.
        jobs: most jobs at a time (None: as many as there are devices for).
        expected: number of jobs of the sweep; fewer jobs than devices get more threads each.
    """

    cpus: int
    gpus: Sequence[str] = ()
    jobs: int | None = None
    expected: int = 1
    _free: dict[str, float] = field(init=False)
    _ranks: int = field(init=False, default=0)
    _running: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._free = dict.fromkeys(self.gpus, 1.0)

    @property
    def are_full(self) -> bool:
        """True while no request could be granted."""
        if not self._running:
            return False
        if self.jobs is not None:
            return self._running >= self.jobs
        return max(self._free.values()) < 1e-9 if self._free else self._ranks >= self.cpus

    def lease(self, request: DeviceRequest) -> DeviceLease | None:
        """Lease devices to a job; return None if the job has to wait."""
        if self._running and self._running >= (self.jobs or math.inf):
            return None
        gpus: tuple[str, ...] | None = ()
        if request.gpus:
            gpus = self._pick(request.gpus)
        elif self.jobs is None and self._ranks and self._ranks + request.ranks > self.cpus:
            return None  # a job with more ranks than the machine has CPUs runs alone
        if gpus is None:
            return None
        for gpu in gpus:
            self._free[gpu] -= min(request.gpus, 1.0)
        self._running += 1
        self._ranks += request.ranks
        return DeviceLease(request, gpus, self._threads(request))

    def release(self, lease: DeviceLease) -> None:
        """Take back the devices of a job."""
        for gpu in lease.gpus:
            self._free[gpu] = min(1.0, self._free[gpu] + min(lease.request.gpus, 1.0))
        self._running -= 1
        self._ranks -= lease.request.ranks

    def _pick(self, wanted: float) -> tuple[str, ...] | None:
        share, number = min(wanted, 1.0), max(1, round(wanted))
        roomy = [gpu for gpu, free in self._free.items() if free >= share - 1e-9]
        roomy.sort(key=lambda gpu: self._free[gpu], reverse=True)  # spreads shares over the GPUs
        return tuple(roomy[:number]) if len(roomy) >= number else None

    def _threads(self, request: DeviceRequest) -> int:
        room = int(len(self.gpus) / request.gpus) if request.gpus else max(1, self.cpus // request.ranks)
        at_once = max(1, min(self.jobs or room, self.expected))
        return max(1, self.cpus // (request.ranks * at_once))


def request_devices(
    trainer: Mapping[str, Any],
    available: int | None,
    gpus_per_job: float | str,
    key: str = "hydra.launcher.gpus_per_job",
    *,
    allow_spare: bool = False,
) -> DeviceRequest:
    """Derive the devices of a job on each of its nodes from the settings of its trainer.

    Args:
        trainer: configuration with `accelerator` and `devices`.
        available: number of GPUs of this machine; None where the machine of the job is unknown.
        gpus_per_job: setting of the launcher: a number, a share below 1, or `auto` for `trainer.devices`.
        key: key of `gpus_per_job`, for error messages.
        allow_spare: let `gpus_per_job` exceed the devices that the job trains on.

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
