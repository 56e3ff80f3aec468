"""Devices of this process: CPUs, and GPUs counted without initializing CUDA."""

import os
import platform
import signal
from contextlib import suppress
from pathlib import Path


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


def device_name(kind: str, count: int = 1) -> str:
    """Return the name of the hardware that computes, such as `2 × NVIDIA H200` or `AMD EPYC 7B13, 16 CPUs`.

    Args:
        kind: type of the torch device, such as `cuda`; a GPU must be in use already.
        count: number of devices [1].
    """
    if kind == "cuda":
        import torch

        return (f"{count} × " if count > 1 else "") + torch.cuda.get_device_name()
    if kind == "cpu":
        cpus = available_cpus()
        return f"{cpu_name()}, {cpus} CPU{'s' if cpus > 1 else ''}"
    return kind


def cpu_name() -> str:
    """Return the model of the CPU, or its architecture if the system does not name the model."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()
