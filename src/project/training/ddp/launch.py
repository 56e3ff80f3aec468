"""Launch of the ranks of a run: forks one process per device.

Lightning starts other ranks by running the command line again, which in a sweep would start the entire sweep
again. Here each rank is forked from a process that has composed the configuration and imported all modules.
Lightning reads the rank from the environment variables of torchrun. The parent must not have used a GPU or a
thread pool before.

The parent does not train. The parent handles signals, hosts the rendezvous store and supervises the ranks. If
one rank fails, exits or is stopped, the other ranks would wait forever. The parent therefore terminates the
other ranks and reports the first error.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta

import torch
from omegaconf import DictConfig
from torch.distributed import Store, TCPStore

from project.config.instantiate import resolve
from project.errors import InputError
from project.runs.run_folder import RunContext, describe
from project.runtime import lazy_imports, signals, torchrun
from project.runtime.devices import count_gpus
from project.runtime.process import clear_rank_variables, die_with_parent, flush_streams
from project.runtime.signals import Stopped, StopRequest
from project.training.ddp.rank_processes import RankGroup, RankReport, SharedStatus
from project.training.ddp.supervisor import RankFailedError, Supervisor

RENDEZVOUS_TIMEOUT = timedelta(minutes=10)


def count_ranks(accelerator: str, devices: int | str | Sequence[int]) -> int:
    """Return the number of processes that a run needs on this machine.

    Raises:
        InputError: `devices` exceeds the number of GPUs.
    """
    gpus = count_gpus()
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus > 0)
    if devices in ("auto", -1, "-1"):
        return max(1, gpus) if on_gpu else 1
    wanted = torchrun.num_devices(devices)
    if on_gpu and not gpus:
        raise InputError(
            f"trainer.accelerator={accelerator}: torch finds no GPU here; set trainer.accelerator=cpu or auto"
        )
    if on_gpu and wanted > gpus:
        raise InputError(
            f"trainer.devices={devices}: this machine has {gpus} GPUs; choose at most that many, or "
            "trainer.accelerator=cpu"
        )
    return max(1, wanted)


def run_on_devices(work: Callable[[], float | None], config: DictConfig, context: RunContext) -> float | None:
    """Run `work` in one process per device.

    Args:
        work: trains in one process and returns the value of `monitor`.
        config: composed configuration, broadcast to other processes that torchrun or srun started.
        context: context of the run.

    Returns:
        The value of `monitor`.
    """
    if torchrun.environment() is not None:
        torchrun.broadcast_config(resolve(config))
        return work()
    ranks = count_ranks(config.trainer.accelerator, config.trainer.devices)
    if ranks == 1:
        return work()
    try:
        run_ranks(work, ranks)
    except BaseException as error:  # rank 0, which writes the status, may have been killed
        text = str(error) if isinstance(error, RankFailedError) else describe(error)
        context.folder.record_end(text, interrupted=isinstance(error, Stopped))
        raise
    value: float | None = context.folder.read_status()["value"]
    return value


def run_ranks(work: Callable[[], object], count: int) -> None:
    """Run `work` in `count` forked processes and wait for all of them.

    Each rank gets the environment variables of torchrun and an equal share of the CPU threads. If one rank
    fails, the other ranks are terminated. On a stop signal, all ranks stop after the same optimizer step and
    save. Ranks that do not train yet exit at once, as do all ranks on a second Ctrl-C or SIGTERM.

    Raises:
        RankFailedError: a rank failed. Its output has been printed.
        InputError, DataError, NonFiniteError: raised in a rank.
        Stopped: this process or a rank received a stop signal.
    """
    lazy_imports.import_pending()  # once for all ranks, before the fork
    lazy_imports.freeze_gc()
    flush_streams()
    parent = os.getpid()
    group, status, request = RankGroup(count), SharedStatus(count), StopRequest(count)
    listener = socket.create_server(("127.0.0.1", 0))
    supervisor = Supervisor(group, status, request, count)
    with signals.handling_signals(supervisor.handle_signal):
        try:
            for rank in range(count):
                pid = os.fork()
                if pid == 0:
                    code = 1
                    try:
                        group.register_stack_dump(rank)
                        code = _run_rank(work, rank, count, listener, status, request, parent)
                    finally:
                        os._exit(code)
                group.running[pid] = rank
            store = _open_store(listener, count)
            try:
                supervisor.run()
            finally:
                del store  # its destructor joins a thread, which does not exist in processes forked later
        finally:
            group.kill()
            group.close()
            listener.close()


def _open_store(listener: socket.socket, count: int) -> Store:
    """Open the rendezvous store of the ranks in the parent.

    The port is bound before the fork, so that two runs cannot collide. Rank 0 does not host the store,
    because its exit would raise connection errors in other ranks. The store starts a thread, and is therefore
    opened after the fork.
    """
    address, port = listener.getsockname()
    return TCPStore(
        address,
        port,
        count,
        is_master=True,
        timeout=RENDEZVOUS_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def _run_rank(
    work: Callable[[], object],
    rank: int,
    count: int,
    listener: socket.socket,
    status: SharedStatus,
    request: StopRequest,
    parent: int,
) -> int:
    """Run `work` as one rank and return its exit code."""
    try:
        for number in signals.SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                signal.signal(number, default)
        die_with_parent(parent)
        signals.follow_request(request, rank)
        clear_rank_variables()
        address, port = listener.getsockname()
        listener.close()
        os.environ |= {
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "NODE_RANK": "0",
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # the parent hosts the store
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
        if sys.platform == "linux":  # the host name may resolve to an unreachable address
            for library in ("GLOO", "NCCL"):
                os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
        work()
        return 0
    except Stopped as stop:
        code = signals.exit_code(stop.signum)
        status.write(rank, RankReport(time.monotonic(), code, signal=stop.signum))
        return code
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BaseException as error:
        status.write(rank, reported := RankReport.of(error))
        return reported.exit_code
    finally:
        with suppress(OSError, ValueError):  # the reader of the pipe may have exited
            flush_streams()
