"""Devices of this process: GPUs, counted without starting CUDA, and CPUs."""

import os
import signal
from contextlib import suppress


def visible_gpus() -> list[str]:
    """Return the names of this process's GPUs."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # count them without starting CUDA
    count = count_gpus()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def count_gpus() -> int:
    """Return the number of this process's GPUs, without starting CUDA: the process may have to fork.

    Torch asks the driver's management library, which starts nothing. The library does not answer for divided
    GPUs named by their id, in some containers, or for ROCm without the package amdsmi. Torch would start CUDA
    then, and no process forked afterwards could use a GPU. A child process asks torch in these cases.
    """
    import torch

    if torch.cuda._is_compiled() and not torch.cuda.is_initialized():
        library = "_device_count_amdsmi" if torch.version.hip else "_device_count_nvml"
        if getattr(torch.cuda, library, lambda: -1)() < 0:
            return _count_in_child()
    return torch.cuda.device_count()


def _count_in_child() -> int:
    """Return torch's count in a child process; 0 if the child dies."""
    import torch

    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            os.write(writer, str(torch.cuda.device_count()).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return int(answer or 0)


def available_cpus() -> int:
    """Return the number of CPUs that this process may run on: those of the cluster's or container's share."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
