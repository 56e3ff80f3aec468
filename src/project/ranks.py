"""One process for each device of a run, forked from this one.

Lightning starts the other ranks by running the command line again; in a multirun each of them would
start the whole sweep. Here every rank is a copy of a process that has composed the configuration and
imported everything already, and Lightning finds the ranks in the environment as under torchrun. Nothing
may have used a GPU or many threads before.
"""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from project import imports
from project.command_line import report
from project.errors import TOLD, InputError
from project.forking import die_with_parent, flush, forget_ranks
from project.nodes import number_of

GRACE_S = 5.0
"""Seconds that ranks have to end by themselves after another one failed, or after a signal."""


class RankFailedError(RuntimeError):
    """A rank ended with an error, which it has reported itself.

    Args:
        message: which and how.
        exit_code: of that rank.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def count_ranks(accelerator: str, devices: int | str | Sequence[int]) -> int:
    """Processes that a run on these devices of this machine needs.

    Args:
        accelerator: as `lightning.Trainer` takes it.
        devices: a number, a list of device numbers, or `auto` (-1) for all.

    Raises:
        InputError: more GPUs are wanted than there are.
    """
    gpus = torch.cuda.device_count()  # asks the driver's management library, starts no CUDA
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
    others are ended; if this process is told to stop, all of them are.

    Raises:
        RankFailedError: a rank failed; it has printed why.
        SystemExit: the input was wrong.
        KeyboardInterrupt: this process was interrupted.
    """
    imports.complete()  # once for all ranks: DDP asks for what has waited
    imports.settle()
    flush()
    parent = os.getpid()
    port = _free_port()
    # What is wrong with the input is often wrong on all ranks: who takes the token tells the user.
    token, token_end = os.pipe()
    os.write(token_end, b"!")
    os.set_blocking(token, False)
    with _interrupt_on_sigterm():
        ranks: dict[int, int] = {}
        try:
            for rank in range(count):
                pid = os.fork()
                if pid == 0:
                    os._exit(_work_as_rank(work, rank, count, port, token, parent))
                ranks[pid] = rank
            _wait(ranks, count)
        finally:
            _end(ranks)
            os.close(token)
            os.close(token_end)


def _work_as_rank(
    work: Callable[[], object], rank: int, count: int, port: int, token: int, parent: int
) -> int:
    """Be one rank; return its exit code."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        die_with_parent(parent)
        forget_ranks()
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "NODE_RANK": "0",
        }
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
        work()
        return 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BaseException as error:
        return report(error, silent=isinstance(error, InputError) and not _take(token))
    finally:
        flush()


def _take(token: int) -> bool:
    """Whether this process is the first to read the token."""
    try:
        return bool(os.read(token, 1))
    except BlockingIOError:
        return False


def _wait(ranks: dict[int, int], count: int) -> None:
    """Wait until every rank has ended; take the ended ones out of `ranks`."""
    while ranks:
        for pid, rank in list(ranks.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del ranks[pid]
                _check(rank, count, os.waitstatus_to_exitcode(status))
        time.sleep(0.02)


def _check(rank: int, count: int, code: int) -> None:
    """Raise unless a rank ended well."""
    if code == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    if code in TOLD:
        raise SystemExit(code)  # the line that the rank printed says it all
    if code < 0:
        name = signal.Signals(-code).name
        raise RankFailedError(f"rank {rank} of {count} was killed by {name}", 128 - code)
    if code > 0:
        raise RankFailedError(f"rank {rank} of {count} ended with exit code {code}", code)


def _end(ranks: dict[int, int]) -> None:
    """Interrupt the ranks that are left, and kill them after a grace."""
    for stop_signal in (signal.SIGINT, signal.SIGKILL):
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, stop_signal)
        deadline = time.monotonic() + GRACE_S
        while ranks and time.monotonic() < deadline:
            for pid in list(ranks):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    del ranks[pid]
            time.sleep(0.02)


@contextlib.contextmanager
def _interrupt_on_sigterm() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
