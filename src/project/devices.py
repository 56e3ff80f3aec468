"""What this process may compute on."""

import os


def visible_gpus() -> list[str]:
    """Names of this process's GPUs."""
    import torch

    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # count them without starting CUDA
    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def available_cpus() -> int:
    """CPUs that this process may run on: what a cluster or container allots, not the machine's number."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
