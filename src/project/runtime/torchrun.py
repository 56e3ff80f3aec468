"""One run of several processes that something else has started: torchrun or SLURM's srun, on one machine or
on many.

The first process (rank 0) does what a single run does: it composes the configuration, checks it and makes
the run folder. The others do nothing of that. They wait until it hands them the resolved configuration, so
that no time, random number or folder can differ, and so that a mistake is told once. It travels through the
key-value store that torch's process group meets in later. Torch is imported only for that.
"""

import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from project.errors import InputError
from project.runtime import slurm

if TYPE_CHECKING:
    from torch.distributed import Store

START_LIMIT = timedelta(minutes=10)
"""How long processes wait for each other to start and for the first to check the configuration."""

END_LIMIT = timedelta(seconds=60)
"""How long the first waits for the others to learn that there is no run."""

PATIENCE_S = 3.0
"""Seconds that the first has to tell of a mistake that all of them may have found."""

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SLURM_VARIABLES = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_LOCALID")

_store: "Store | None" = None
_shared = False


class World(NamedTuple):
    """The processes of this run, one a device.

    Args:
        rank: this process's number.
        size: number of processes.
        local_size: of them, those on this machine; as many on each.
    """

    rank: int
    size: int
    local_size: int

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return self.size // self.local_size


def world() -> World | None:
    """Return what torchrun's variables say, or None for a process that stands alone."""
    if any(name not in os.environ for name in VARIABLES):
        return None
    return World(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")))


def is_first() -> bool:
    """Whether this process writes the run folder and talks to the user."""
    return (here := world()) is None or here.rank == 0


def translate_slurm() -> None:
    """In a step of several tasks that srun started, set the variables that torchrun would have set.

    Raises:
        InputError: the machines have different numbers of tasks.
    """
    found = os.environ
    tasks = found.get("SLURM_STEP_NUM_TASKS", found.get("SLURM_NTASKS", "1"))
    if world() is not None or tasks == "1" or any(name not in found for name in SLURM_VARIABLES):
        return
    counts = found.get("SLURM_STEP_TASKS_PER_NODE", found.get("SLURM_TASKS_PER_NODE", tasks))
    each = re.sub(r"\(x\d+\)", "", counts).split(",")
    if len(set(each)) > 1:
        raise InputError(
            f"srun started {counts} tasks on its nodes; each needs as many: srun --ntasks-per-node={each[0]}"
        )
    nodes = found.get("SLURM_STEP_NODELIST", found.get("SLURM_JOB_NODELIST", "127.0.0.1"))
    steps = int(found["SLURM_JOB_ID"]) + int(found["SLURM_STEP_ID"])
    os.environ |= {
        "RANK": found["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": found["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": each[0],
        "GROUP_RANK": found.get("SLURM_NODEID", "0"),
        "MASTER_ADDR": found.get("MASTER_ADDR", first_host(nodes)),
        "MASTER_PORT": found.get("MASTER_PORT", str(15000 + steps % 10000)),
    }


def first_host(nodes: str) -> str:
    """First machine of a list as SLURM writes it: `gpu[03-05,9],login` begins with gpu03."""
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes).split(",")[0]


def find_mismatch(config: DictConfig) -> Iterator[str]:
    """Yield where `trainer` asks for other processes than there are; `devices=auto` takes what there is."""
    wanted_nodes, devices = config.trainer.num_nodes, config.trainer.devices
    here = world()
    if here is None:
        if wanted_nodes > 1:
            yield f"trainer.num_nodes={wanted_nodes}: {_how_to_start(wanted_nodes, devices)}"
        return
    if devices in ("auto", -1, "-1"):
        config.trainer.devices = here.local_size
    elif (wanted := number_of(devices)) != here.local_size:
        yield (
            f"trainer.devices={devices}: {here.local_size} processes were started on each node; set "
            f"trainer.devices={here.local_size}, or start {wanted} (torchrun --nproc-per-node={wanted}, "
            f"srun --ntasks-per-node={wanted})"
        )
    if wanted_nodes != here.nodes:
        yield (
            f"trainer.num_nodes={wanted_nodes}: processes were started on {here.nodes} nodes; set "
            f"trainer.num_nodes={here.nodes}, or start them on {wanted_nodes} (--nnodes={wanted_nodes})"
        )


def number_of(devices: int | str | Sequence[int]) -> int:
    """How many devices `trainer.devices` means: a number, or a list such as `0,1`."""
    if isinstance(devices, str) and not devices.isdigit():
        return len([device for device in devices.split(",") if device])
    return int(devices) if isinstance(devices, int | str) else len(devices)


def refuse_sweep() -> None:
    """Raise an InputError if there are other processes: each job of a sweep starts its own."""
    if world() is not None:
        raise InputError(
            "-m: torchrun and srun start the processes of one run; start the sweep without them, or leave "
            "out -m"
        )


def name_folder(hydra: DictConfig) -> Path:
    """The run folder that is wanted; where srun started the processes it bears the number of the job and
    step, by which a requeued job finds it again, unless the command line gives a name.

    Args:
        hydra: Hydra's own node of the configuration.
    """
    wanted = Path(hydra.run.dir)
    given = any(text.partition("=")[0] == "hydra.run.dir" for text in hydra.overrides.hydra)
    if given or world() is None or any(name not in os.environ for name in SLURM_VARIABLES):
        return wanted
    return wanted.with_name(f"slurm-{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}")


def earlier_folder(hydra: DictConfig) -> Path | None:
    """Folder of the same run before torchrun or SLURM started it again; None at the first start, and where
    nothing says that a folder is this run's.

    Args:
        hydra: Hydra's own node of the configuration.
    """
    if world() is None:
        return slurm.find_run(Path(hydra.run.dir))
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        store = _connect()
        return Path(store.get("folder").decode()) if store.check(["folder"]) else None
    wanted = name_folder(hydra)
    given = wanted == Path(hydra.run.dir)  # and may bear the time of this start
    return slurm.find_run(wanted, named_alike=not given)


def share(config: DictConfig) -> None:
    """Hand the configuration to the others; in the first process, once it is checked and has its folder."""
    global _shared
    here = world()
    assert here is not None
    if here.rank > 0:
        return
    _shared = True
    if here.size > 1:
        store = _connect()
        store.set("folder", str(config.paths.run))
        _say(config=OmegaConf.to_container(config, resolve=True, throw_on_missing=True))


def receive() -> DictConfig:
    """Wait for the configuration, in a process that is not the first.

    Raises:
        SystemExit: there is no run, for example because of a mistake, which the first process has told.
    """
    from torch.distributed import DistError

    here = world()
    assert here is not None
    try:
        store = _connect()
        message: Any = OmegaConf.create(store.get(_key("message")).decode())
        store.set(_key(f"read/{here.rank}"), "")
    except DistError as error:
        print(f"rank {here.rank}: nothing was heard of rank 0 ({error})", file=sys.stderr)
        raise SystemExit(1) from error
    if "config" not in message:
        raise SystemExit(message.exit_code)
    return message.config


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """End the other processes with this one's exit code if it ends before there was a run to share."""
    try:
        yield
    except SystemExit as error:
        _tell_others(error.code if isinstance(error.code, int) else 1)
        raise
    _tell_others(0)


def told_elsewhere() -> bool:
    """Whether another process tells of the mistake that this one has found; the first one may go first."""
    if _store is None:
        return False
    from torch.distributed import DistError

    if not is_first():
        time.sleep(PATIENCE_S)
    try:
        return _store.add(_key("told"), 1) > 1
    except DistError:
        return True  # the machine that holds the store ended, because of the same mistake


def _tell_others(exit_code: int) -> None:
    here = world()
    if here is None or here.size == 1 or here.rank > 0 or _shared:
        return
    from torch.distributed import DistError

    with contextlib.suppress(DistError):
        _say(exit_code=exit_code)
        _connect().wait([_key(f"read/{rank}") for rank in range(1, here.size)], END_LIMIT)


def _say(**message: Any) -> None:
    _connect().set(_key("message"), OmegaConf.to_yaml(OmegaConf.create(message)))


def _key(name: str) -> str:
    """Of this start: torchrun may start the same run anew, and the store keeps what was said before."""
    return f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}"


def _connect() -> "Store":
    """The store of torchrun's agent, or one that rank 0 opens and the process group then shares."""
    from torch.distributed import PrefixStore, rendezvous

    global _store
    if _store is None:
        store, _, _ = next(rendezvous("env://", timeout=START_LIMIT))
        _store = PrefixStore("project", store)
    return _store


def _how_to_start(nodes: int, devices: Any) -> str:
    each = "N" if devices in ("auto", -1, "-1") else number_of(devices)
    return (
        f"torchrun starts the processes of several machines; on each of them, with its own --node-rank of "
        f"0 to {nodes - 1}: torchrun --nnodes={nodes} --nproc-per-node={each} --node-rank=0 "
        f"--master-addr=HOST --master-port=29500 {shlex.join(sys.argv)}"
    )
