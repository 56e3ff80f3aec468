"""Devices that a sweep's jobs take turns on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from project.errors import InputError
from project.runtime.torchrun import number_of


@dataclass(frozen=True)
class Need:
    """What one job takes.

    Args:
        ranks: processes.
        gpus: of which each rank has one; below 1, a share of one; 0 on CPUs.
    """

    ranks: int
    gpus: float = 0.0


@dataclass(frozen=True)
class Grant:
    """What a job was given.

    Args:
        need: what it asked for.
        gpus: their names, as in CUDA_VISIBLE_DEVICES.
        threads: of each rank.
    """

    need: Need
    gpus: tuple[str, ...]
    threads: int


@dataclass
class Slots:
    """Free devices of this machine.

    Args:
        cpus: that this process may use.
        gpus: their names.
        jobs: at a time, None as many as there are devices for.
        expected: jobs in the whole sweep; fewer than devices get more threads each.
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
    def full(self) -> bool:
        """Whether no job at all could be given devices."""
        if not self._running:
            return False
        taken = max(self._free.values()) < 1e-9 if self._free else self._ranks >= self.cpus
        return self._running >= self.jobs if self.jobs is not None else taken

    def take(self, need: Need) -> Grant | None:
        """Give a job its devices, None if it has to wait."""
        if self._running and self._running >= (self.jobs or math.inf):
            return None
        if need.gpus:
            gpus = self._pick(need.gpus)
            if gpus is None:
                return None
        else:
            gpus = ()
            crowded = self.jobs is None and self._ranks + need.ranks > self.cpus
            if crowded and self._ranks:  # a job that alone is too large for the machine may run alone
                return None
        for gpu in gpus:
            self._free[gpu] -= min(need.gpus, 1.0)
        self._running += 1
        self._ranks += need.ranks
        return Grant(need, gpus, self._threads(need))

    def give_back(self, grant: Grant) -> None:
        """Take a job's devices back."""
        for gpu in grant.gpus:
            self._free[gpu] = min(1.0, self._free[gpu] + min(grant.need.gpus, 1.0))
        self._running -= 1
        self._ranks -= grant.need.ranks

    def _pick(self, wanted: float) -> tuple[str, ...] | None:
        share, number = min(wanted, 1.0), max(1, round(wanted))
        roomy = [gpu for gpu, free in self._free.items() if free >= share - 1e-9]
        roomy.sort(key=lambda gpu: self._free[gpu], reverse=True)  # spread the small ones
        return tuple(roomy[:number]) if len(roomy) >= number else None

    def _threads(self, need: Need) -> int:
        at_once = self.jobs or self._room(need)
        return max(1, self.cpus // (need.ranks * max(1, min(at_once, self.expected))))

    def _room(self, need: Need) -> int:
        if need.gpus:
            return int(len(self.gpus) / need.gpus)
        return max(1, self.cpus // need.ranks)


def need_of(trainer: Mapping[str, Any], gpus: int, gpus_per_job: float | str) -> Need:
    """What a job takes, from its trainer's settings.

    Args:
        trainer: `accelerator` and `devices`.
        gpus: that this machine has.
        gpus_per_job: `auto`: as many as `trainer.devices` says; a number; below 1, a share of one.

    Raises:
        InputError: there are not as many, or the two settings contradict each other.
    """
    devices = trainer["devices"]
    accelerator = str(trainer["accelerator"])
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus > 0)
    if on_gpu and not gpus:
        raise InputError(
            f"trainer.accelerator={accelerator}: torch finds no GPU here; set trainer.accelerator=cpu or auto"
        )
    everything = devices in ("auto", -1, "-1")
    if on_gpu and not isinstance(devices, int | str):
        number = number_of(devices)
        raise InputError(
            f"trainer.devices={list(devices)}: a sweep gives each job its GPUs; say how many, "
            f"trainer.devices={number}, and from which with hydra.launcher.gpus={list(devices)}"
        )
    if not on_gpu:
        return Need(1 if everything else max(1, number_of(devices)))
    if gpus_per_job == "auto":
        wanted: float = gpus if everything else max(1, number_of(devices))
    else:
        wanted = float(gpus_per_job)
        ranks = 1 if wanted < 1 else int(wanted)
        if not everything and max(1, number_of(devices)) != ranks:
            raise InputError(
                f"hydra.launcher.gpus_per_job={gpus_per_job}: a job trains on trainer.devices={devices}; set "
                + (f"trainer=ddp trainer.devices={ranks}" if ranks > 1 else "trainer.devices=1")
            )
    if wanted > gpus:
        raise InputError(
            f"trainer.devices={devices}: this machine has {gpus} GPUs; choose at most that many, or "
            "trainer.accelerator=cpu"
        )
    return Need(max(1, int(wanted)), wanted)
