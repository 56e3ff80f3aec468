"""Devices of this process: CPUs, and GPUs counted without initializing CUDA."""

import os
import signal
from contextlib import suppress


def visible_gpus() -> list[str]:
    """Return the names of this process's GPUs."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # count without initializing CUDA
    count = count_gpus()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def count_gpus() -> int:
    """Return the number of this process's GPUs without initializing CUDA, as the process may fork later.

    Torch asks the driver's management library (NVML or amdsmi), without CUDA. NVML fails for MIG devices
    named by UUID and in some containers; ROCm needs the package amdsmi. Torch would then initialize CUDA, and
    no process forked later could use a GPU. In these cases a child process asks torch.
    """
    import torch

    if torch.cuda._is_compiled() and not torch.cuda.is_initialized():
        library = "_device_count_amdsmi" if torch.version.hip else "_device_count_nvml"
        if getattr(torch.cuda, library, lambda: -1)() < 0:
            return _count_in_child()
    return torch.cuda.device_count()


def _count_in_child() -> int:
    """Return the number of GPUs that torch finds in a child process; 0 if the child fails."""
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
    """Return the number of CPUs that this process may run on, within the limits of a cluster or container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
