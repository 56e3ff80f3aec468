"""Runs in several processes that torchrun or SLURM's srun started, on one or several machines.

Rank 0 composes and checks the configuration and makes the run folder. The other ranks wait for the resolved
configuration, so that no time, random number or folder differs, and an error is reported once. Rank 0 sends
the configuration through the key-value store of torch's process group. Torch is imported only for this.
"""

import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from project.errors import InputError
from project.runtime import slurm
from project.runtime.text import plural

if TYPE_CHECKING:
    import lightning as L
    from torch.distributed import Store

START_LIMIT = timedelta(minutes=10)
"""Timeout for all ranks to start and for rank 0 to check the configuration."""
END_LIMIT = timedelta(seconds=60)
"""Timeout for the other ranks to read that there is no run."""
REPORT_DELAY_S = 3.0
"""Delay of the other ranks before they report an error that rank 0 may report, too [s]."""

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SLURM_VARIABLES = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_LOCALID")
ALL_DEVICES = ("auto", -1, "-1")

_store: "Store | None" = None
_config_sent = False


class Environment(NamedTuple):
    """Processes of this run, one per device: rank of this one, number in total, on this machine, machines."""

    rank: int
    world_size: int
    local_world_size: int
    num_nodes: int


def environment() -> Environment | None:
    """Read torchrun's environment variables; return None for a single process."""
    if any(name not in os.environ for name in VARIABLES):
        return None
    rank, number, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    return Environment(rank, number, local, int(os.environ.get("GROUP_WORLD_SIZE", number // local)))


def is_rank_zero() -> bool:
    """Return True in the process that writes the run folder and prints."""
    return (own := environment()) is None or own.rank == 0


def set_variables_from_slurm() -> None:
    """Set torchrun's environment variables in an srun step of several tasks.

    Raises:
        InputError: the machines have different numbers of tasks.
    """
    os.environ |= variables_from_slurm()


def variables_from_slurm() -> dict[str, str]:
    """Return torchrun's environment variables for an srun step of several tasks; empty elsewhere.

    Raises:
        InputError: the machines have different numbers of tasks.
    """
    found = os.environ
    tasks = found.get("SLURM_STEP_NUM_TASKS", found.get("SLURM_NTASKS", "1"))
    if environment() is not None or tasks == "1" or any(name not in found for name in SLURM_VARIABLES):
        return {}
    counts = found.get("SLURM_STEP_TASKS_PER_NODE", found.get("SLURM_TASKS_PER_NODE", tasks))
    each = re.sub(r"\(x\d+\)", "", counts).split(",")
    if len(set(each)) > 1:
        raise InputError(
            f"srun started {counts} tasks on its nodes; give each the same number: srun "
            f"--ntasks-per-node={each[0]}"
        )
    nodes = found.get("SLURM_STEP_NODELIST", found.get("SLURM_JOB_NODELIST", "127.0.0.1"))
    steps = int(found["SLURM_JOB_ID"]) + int(found["SLURM_STEP_ID"])
    return {
        "RANK": found["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": found["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": each[0],
        "GROUP_RANK": found.get("SLURM_NODEID", "0"),
        "MASTER_ADDR": found.get("MASTER_ADDR", first_host(nodes)),
        "MASTER_PORT": found.get("MASTER_PORT", str(15000 + steps % 10000)),
    }


def first_host(nodes: str) -> str:
    """Return the first host of a SLURM node list: gpu03 for `gpu[03-05,9],login`."""
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes).split(",")[0]


def find_mismatch(config: DictConfig) -> Iterator[str]:
    """Yield a line per mismatch of `trainer` and the processes; replace `devices=auto` by their number."""
    num_nodes, devices = config.trainer.num_nodes, config.trainer.devices
    own = environment()
    if own is None:
        if num_nodes > 1:
            yield f"trainer.num_nodes={num_nodes}: {_how_to_start(num_nodes, devices)}"
        return
    if own.num_nodes * own.local_world_size != own.world_size:
        yield (
            f"torchrun: {own.world_size} processes on {own.num_nodes} machines, {own.local_world_size} of "
            "them on this one; give each machine the same --nproc-per-node"
        )
        return
    if devices in ALL_DEVICES:
        config.trainer.devices = own.local_world_size
    elif (wanted := num_devices(devices)) != own.local_world_size:
        yield (
            f"trainer.devices={devices}: the number of processes per node is {own.local_world_size}; set "
            f"trainer.devices={own.local_world_size}, or start {wanted} (torchrun --nproc-per-node={wanted}, "
            f"srun --ntasks-per-node={wanted})"
        )
    if num_nodes != own.num_nodes:
        yield (
            f"trainer.num_nodes={num_nodes}: the processes run on {plural(own.num_nodes, 'node')}; set "
            f"trainer.num_nodes={own.num_nodes}, or start them on {num_nodes} (--nnodes={num_nodes})"
        )


def _how_to_start(num_nodes: int, devices: Any) -> str:
    each = "N" if devices in ALL_DEVICES else num_devices(devices)
    return (
        f"torchrun starts the processes of several machines; on each of them, with its own --node-rank of "
        f"0 to {num_nodes - 1}: torchrun --nnodes={num_nodes} --nproc-per-node={each} --node-rank=0 "
        f"--master-addr=HOST --master-port=29500 {shlex.join(sys.argv)}"
    )


def num_devices(devices: int | str | Sequence[int]) -> int:
    """Return the number of devices in `trainer.devices`, a number or a list such as `0,1`."""
    if isinstance(devices, str) and not devices.isdigit():
        return len([device for device in devices.split(",") if device])
    return int(devices) if isinstance(devices, int | str) else len(devices)


def refuse_sweep() -> None:
    """Refuse a sweep in processes that torchrun or srun started, as each job starts its own processes."""
    if environment() is not None:
        raise InputError(
            "-m: torchrun and srun start the processes of one run; start the sweep without them, or leave "
            "out -m"
        )


def run_folder(hydra: DictConfig) -> Path:
    """Return the run folder to make: `hydra.run.dir`, or under srun `slurm-JOB.STEP` if not overridden."""
    wanted = Path(hydra.run.dir)
    given = any(text.partition("=")[0] == "hydra.run.dir" for text in hydra.overrides.hydra)
    if given or environment() is None or any(name not in os.environ for name in SLURM_VARIABLES):
        return wanted
    return wanted.with_name(f"slurm-{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}")


def find_restarted_run(hydra: DictConfig) -> Path | None:
    """Return the run folder from before torchrun or SLURM restarted the run; None at the first start."""
    if environment() is None:
        return slurm.find_run(Path(hydra.run.dir))
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        store = _connect()
        return Path(store.get("folder").decode()) if store.check(["folder"]) else None
    wanted = run_folder(hydra)
    has_own_name = wanted != Path(hydra.run.dir)  # otherwise the name may contain the start time
    return slurm.find_run(wanted, same_name=has_own_name)


def broadcast_config(values: Mapping[str, Any]) -> None:
    """Send the checked configuration, as plain values, and its run folder from rank 0 to the other ranks."""
    global _config_sent
    own = environment()
    assert own is not None
    if own.rank > 0:
        return
    _config_sent = True
    if own.world_size > 1:
        store = _connect()
        store.set("folder", str(values["paths"]["run"]))
        _send(config=dict(values))


def receive_config() -> DictConfig:
    """Receive the configuration in a rank other than 0; exit if rank 0 reports that there is no run.

    Raises:
        SystemExit: there is no run, or rank 0 does not answer.
    """
    from torch.distributed import DistError

    own = environment()
    assert own is not None
    try:
        store = _connect()
        message = json.loads(store.get(_key("message")).decode())
        store.set(_key(f"read/{own.rank}"), "")
    except DistError as error:
        print(f"rank {own.rank}: no answer from rank 0 ({error})", file=sys.stderr)
        raise SystemExit(1) from error
    if "config" not in message:
        raise SystemExit(message["exit_code"])
    return OmegaConf.create(message["config"])


@contextmanager
def share_exit_code() -> Iterator[None]:
    """Make other ranks exit with this rank's exit code if it exits before sending a configuration."""
    try:
        yield
    except SystemExit as error:
        _send_exit_code(error.code if isinstance(error.code, int) else 1)
        raise
    _send_exit_code(0)


def is_reported_elsewhere() -> bool:
    """Return True if another rank has reported the same error; rank 0 has precedence."""
    if _store is None:
        return False
    from torch.distributed import DistError

    if not is_rank_zero():
        time.sleep(REPORT_DELAY_S)
    try:
        return _store.add(_key("reported"), 1) > 1
    except DistError:
        return True  # the host of the store exited with the same error


def all_reduce_max(trainer: "L.Trainer", *numbers: int) -> list[int]:
    """Return the maximum of each number over all ranks. A collective call: all ranks must make it."""
    import torch

    if trainer.world_size == 1:
        return list(numbers)
    words = torch.tensor(numbers, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(words, op=torch.distributed.ReduceOp.MAX)
    return [int(word) for word in words.tolist()]


def _send_exit_code(exit_code: int) -> None:
    own = environment()
    if own is None or own.world_size == 1 or own.rank > 0 or _config_sent:
        return
    from torch.distributed import DistError

    with suppress(DistError):
        _send(exit_code=exit_code)
        _connect().wait([_key(f"read/{rank}") for rank in range(1, own.world_size)], END_LIMIT)


def _send(**message: Any) -> None:
    _connect().set(_key("message"), json.dumps(message))


def _key(name: str) -> str:
    """Return a key for this start, as the store keeps messages from before a restart by torchrun."""
    return f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}"


def _connect() -> "Store":
    """Return the store of torchrun's agent, or one that rank 0 opens; the process group also uses it."""
    from torch.distributed import PrefixStore, rendezvous

    global _store
    if _store is None:
        store, _, _ = next(rendezvous("env://", timeout=START_LIMIT))
        _store = PrefixStore("project", store)
    return _store
