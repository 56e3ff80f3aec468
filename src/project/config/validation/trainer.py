"""Check the trainer: devices of this machine, their precisions, and batches per epoch.

The number of GPUs comes from the operating system, because importing torch takes seconds. If the number is
uncertain, torch counts the GPUs later.
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from project.config.validation.command_request import CommandRequest
from project.config.validation.data import training_length

ON_GPU = ("gpu", "cuda")
SIXTEEN_BITS = ("16-mixed", "16")
DRIVERS = (
    *("nvidia*", "nvhost*", "nvmap", "nvgpu*", "dxg"),
    *("kfd", "dri/renderD*", "accel*", "davinci*", "mthreads*"),
)
"""Patterns of device files in /dev of possible GPUs: NVIDIA (also Jetson and WSL), AMD, Intel and others."""
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""Environment variables that list the GPUs a process may use."""
MIN_PROCESSES = 8
"""Number of CPU processes that is accepted on any machine."""


def find_problems(right: Mapping[str, Any], command: CommandRequest) -> Iterator[str]:
    """Yield a line for each invalid trainer option; the parameters are those of `data.find_problems`."""
    if missing := list(_missing_devices(right, command)):
        yield from missing
    else:
        yield from _wrong_precision(right, command)
        yield from _wrong_batch_norm(right, command)
    yield from _wrong_batches(right)
    for unit in ("epochs", "steps"):
        least, most = right.get(f"trainer.min_{unit}"), right.get(f"trainer.max_{unit}")
        if isinstance(least, int) and isinstance(most, int) and 0 < most < least:
            yield f"trainer.min_{unit}={least}: more than trainer.max_{unit}={most}; choose at most {most}"


def max_gpus() -> int | None:
    """Return an upper bound of the GPUs that torch can find on this machine; None if uncertain."""
    if sys.platform != "linux":
        return None
    bounds = (_by_torch(), _by_devices(), _by_nvidia(), _by_environment())
    return min((bound for bound in bounds if bound is not None), default=None)


def _missing_devices(right: Mapping[str, Any], command: CommandRequest) -> Iterator[str]:
    accelerator, devices = str(right.get("trainer.accelerator")), right.get("trainer.devices")
    if not command.here:
        return
    if accelerator == "mps" and sys.platform != "darwin":
        yield "trainer.accelerator=mps: available only on Apple silicon; set trainer.accelerator=auto"
    elif accelerator == "tpu" and find_spec("torch_xla") is None:
        yield "trainer.accelerator=tpu: needs torch_xla, which is not installed; set trainer.accelerator=auto"
    wanted = devices if isinstance(devices, int) else len(devices) if isinstance(devices, list) else 0
    processes = max(os.cpu_count() or 1, MIN_PROCESSES)
    if wanted > processes and _is_on_cpu(right, command):
        yield (
            f"trainer.devices={devices}: more processes than this machine's CPU can run (expected at most "
            f"{processes}, got {wanted}); choose fewer"
        )
    if accelerator not in ON_GPU or (most := max_gpus()) is None:
        return
    hidden = ", ".join(f"{name}={os.environ[name]}" for name in VISIBLE if name in os.environ)
    hidden = f" ({hidden})" if hidden else ""
    if not most:
        yield (
            f"trainer.accelerator={accelerator}: this machine has no GPU{hidden}; set "
            "trainer.accelerator=cpu or auto"
        )
    elif wanted > most:
        yield (
            f"trainer.devices={devices}: this machine has {most} GPUs{hidden}; choose at most "
            f"{most}, or trainer.accelerator=cpu"
        )
    elif isinstance(devices, list) and max(devices) >= most:
        yield (
            f"trainer.devices={devices}: there is no GPU {max(devices)}; this machine has {most}"
            f"{hidden}, counted from 0"
        )


def _is_on_cpu(right: Mapping[str, Any], command: CommandRequest) -> bool:
    """Return True if the run certainly trains on CPUs."""
    accelerator = right.get("trainer.accelerator")
    has_others = sys.platform == "darwin" or find_spec("torch_xla") is not None
    has_none = command.here and not has_others and max_gpus() == 0
    return accelerator == "cpu" or (accelerator == "auto" and has_none)


def _wrong_batch_norm(right: Mapping[str, Any], command: CommandRequest) -> Iterator[str]:
    """Yield a line for synchronized batch norm on CPUs; `auto` means one CPU process."""
    several = right.get("trainer.devices") not in (1, "1", "auto") or right.get("trainer.num_nodes", 1) != 1
    if right.get("trainer.sync_batchnorm") is True and several and _is_on_cpu(right, command):
        yield (
            "trainer.sync_batchnorm=true: torch synchronizes batch norm only on GPUs; set "
            "trainer.sync_batchnorm=false"
        )


def _wrong_precision(right: Mapping[str, Any], command: CommandRequest) -> Iterator[str]:
    precision = str(right.get("trainer.precision"))
    if precision in SIXTEEN_BITS and _is_on_cpu(right, command):
        yield (f"trainer.precision={precision}: needs a GPU; set trainer.precision=bf16-mixed or 32-true")
    if precision.startswith("transformer-engine") and find_spec("transformer_engine") is None:
        yield (
            f"trainer.precision={precision}: needs the package transformer_engine, which is not installed; "
            "set trainer.precision=bf16-mixed"
        )


def _wrong_batches(right: Mapping[str, Any]) -> Iterator[str]:
    batches = training_length(right).batches
    interval, per_step = right.get("trainer.val_check_interval"), right.get("trainer.accumulate_grad_batches")
    across = right.get("trainer.check_val_every_n_epoch", 1) is None
    if across and (interval is None or isinstance(interval, float)):
        yield (
            "trainer.check_val_every_n_epoch=null: validates after a number of batches; "
            "set trainer.val_check_interval=100, for example, or trainer.check_val_every_n_epoch=1"
        )
    if batches is None:
        return
    if type(interval) is int and interval > batches and not across:
        yield (
            f"trainer.val_check_interval={interval}: an epoch has {batches:,} batches; choose at most "
            f"{batches}, a fraction, or trainer.check_val_every_n_epoch=null to count across epochs"
        )
    if isinstance(per_step, int) and per_step > batches:
        yield (
            f"trainer.accumulate_grad_batches={per_step}: an epoch has {batches:,} batches; choose at most "
            f"{batches}"
        )


def _by_torch() -> int | None:
    """Return 0 if torch was built without GPU support; otherwise None."""
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    try:
        text = (Path(next(iter(spec.submodule_search_locations))) / "version.py").read_text()
    except OSError:
        return None
    kinds = re.findall(r"^(?:cuda|hip|rocm|xpu)\b[^=]*= *(.*)$", text, re.MULTILINE)
    return 0 if len(kinds) >= 2 and all(kind.strip() == "None" for kind in kinds) else None


def _by_devices(root: Path = Path("/dev")) -> int | None:
    """Return 0 if /dev has no device file of a GPU driver; otherwise None."""
    return None if any(next(root.glob(driver), None) for driver in DRIVERS) else 0


def _by_nvidia(root: Path = Path("/proc/driver/nvidia")) -> int | None:
    """Return the number of GPUs that NVIDIA's driver lists; None if unknown, or with MIG partitions."""
    try:
        number = len(list((root / "gpus").iterdir()))
    except OSError:
        return None
    divided = next((root / "capabilities").glob("gpu*/mig/gi*"), None)
    others = next(Path("/dev").glob("kfd"), None)
    return number if number and not divided and not others else None


def _by_environment() -> int | None:
    """Return the number of GPUs in environment variables, up to the first invalid entry; None without any."""
    numbers = []
    for name in VISIBLE:
        if name in os.environ:
            valid = 0
            for entry in os.environ[name].split(","):
                if entry.strip().lower() in ("", "-1", "none", "nodevfiles"):
                    break
                valid += 1
            numbers.append(valid)
    return min(numbers, default=None)
