"""One process for each device of a run, forked from this one.

Lightning starts the other ranks by running the command line again; in a multirun each of them would
start the whole sweep. Here every rank is a copy of a process that has composed the configuration and
imported everything already, and Lightning finds the ranks in the environment as under torchrun. Nothing
may have used a GPU or many threads before.

This process trains nothing. It hears the signals, hosts the store in which the ranks meet, and watches: if
one rank fails, dies or stands still, the others, which wait for it somewhere in a library, are ended, and
what came first is told. `RankGroup` sees to the processes, `Reports` to what they have to say.
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
from torch.distributed import Store, TCPStore

from project.errors import InputError
from project.runtime import signals, training_imports
from project.runtime.devices import count_gpus
from project.runtime.signals import Request, Stopped
from project.runtime.streams import die_with_parent, flush, forget_ranks
from project.runtime.torchrun import number_of
from project.training.ddp.process_group import RankGroup
from project.training.ddp.shared_status import Report, Reports
from project.training.ddp.supervisor import RankFailedError, Watch

__all__ = ["RankFailedError", "count_ranks", "run_ranks"]

MEETING_LIMIT = timedelta(minutes=10)
"""How long ranks wait for each other to start."""


def count_ranks(accelerator: str, devices: int | str | Sequence[int]) -> int:
    """Processes that a run on these devices of this machine needs.

    Args:
        accelerator: as `lightning.Trainer` takes it.
        devices: a number, a list of device numbers, or `auto` (-1) for all.

    Raises:
        InputError: more GPUs are wanted than there are.
    """
    gpus = count_gpus()
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus > 0)
    if devices in ("auto", -1, "-1"):
        return max(1, gpus) if on_gpu else 1
    wanted = number_of(devices)
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


def run_ranks(work: Callable[[], object], count: int) -> None:
    """Run `work` in `count` forked processes and wait for all of them.

    Each has torchrun's variables in its environment and its share of the CPUs as threads. If one fails, the
    others are ended. If this process is told to stop, all of them stop after the same step and save, or end
    at once where there is nothing to save, and at a second Ctrl-C or SIGTERM.

    Raises:
        RankFailedError: a rank failed; what it had to say has been printed.
        InputError, DataError, NonFiniteError: as raised in a rank.
        Stopped: this process or a rank was told to stop.
    """
    training_imports.complete()  # once for all ranks: DDP asks for what has waited
    training_imports.settle()
    flush()
    parent = os.getpid()
    group, reports, request = RankGroup(count), Reports(count), Request(count)
    meeting = socket.create_server(("127.0.0.1", 0))
    watch = Watch(group, reports, request, count)
    with watch.listening():
        try:
            for rank in range(count):
                pid = os.fork()
                if pid == 0:
                    code = 1
                    try:
                        group.join(rank)
                        code = _work_as_rank(work, rank, count, meeting, reports, request, parent)
                    finally:
                        os._exit(code)
                group.running[pid] = rank
            store = _open_store(meeting, count)
            try:
                watch.run()
            finally:
                del store  # now: in a process forked later there is no thread that its end could wait for
        finally:
            group.kill()
            group.close()
            meeting.close()


def _open_store(meeting: socket.socket, count: int) -> Store:
    """Serve the store in which the ranks meet.

    Here rather than in rank 0: the port is known before, so that two runs cannot choose the same one; only
    this machine can reach it; and when rank 0 dies no other rank complains about that. After the ranks were
    forked, because it has a thread.
    """
    address, port = meeting.getsockname()
    return TCPStore(
        address,
        port,
        count,
        is_master=True,
        timeout=MEETING_LIMIT,
        wait_for_workers=False,
        master_listen_fd=meeting.detach(),
    )


def _work_as_rank(
    work: Callable[[], object],
    rank: int,
    count: int,
    meeting: socket.socket,
    reports: Reports,
    request: Request,
    parent: int,
) -> int:
    """Be one rank; return its exit code."""
    try:
        for number in signals.SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                signal.signal(number, default)
        die_with_parent(parent)
        signals.obey(request, rank)
        forget_ranks()
        address, port = meeting.getsockname()
        meeting.close()
        os.environ |= {
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "NODE_RANK": "0",
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is there already
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
        if sys.platform == "linux":  # all are here, whatever this machine's name resolves to
            for library in ("GLOO", "NCCL"):
                os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
        work()
        return 0
    except Stopped as stop:
        code = signals.exit_code(stop.signum)
        reports.write(rank, Report(time.monotonic(), code, signal=stop.signum))
        return code
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BaseException as error:
        reports.write(rank, told := Report.of(error))
        return told.exit_code
    finally:
        with suppress(OSError, ValueError):  # nobody reads any more
            flush()
