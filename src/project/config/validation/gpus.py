"""How many GPUs there are at most, as the operating system tells it: asking torch would take seconds.

Where it is not certain nothing is said, and torch is asked later.
"""

import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

DRIVERS = (
    *("nvidia*", "nvhost*", "nvmap", "nvgpu*", "dxg"),
    *("kfd", "dri/renderD*", "accel*", "davinci*", "mthreads*"),
)
"""What lies in /dev where there may be a GPU: NVIDIA's, in Jetsons and under WSL too; AMD's, Intel's."""

VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def most() -> int | None:
    """The most GPUs that torch can find on this machine; None where that is not certain."""
    if sys.platform != "linux":
        return None
    bounds = (_by_torch(), _by_devices(), _by_nvidia(), _by_environment())
    return min((bound for bound in bounds if bound is not None), default=None)


def hidden() -> str:
    """What to add where the environment hides GPUs, for messages."""
    named = [f"{name}={os.environ[name]}" for name in VISIBLE if name in os.environ]
    return f" ({', '.join(named)})" if named else ""


def may_be_apple() -> bool:
    """Whether there may be an Apple GPU."""
    return sys.platform == "darwin"


def _by_torch() -> int | None:
    """None are found by a torch that was built without any kind of GPU."""
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
    """None are found where no driver has made a device."""
    return None if any(next(root.glob(driver), None) for driver in DRIVERS) else 0


def _by_nvidia(root: Path = Path("/proc/driver/nvidia")) -> int | None:
    """NVIDIA's driver lists its GPUs; divided ones (MIG) count otherwise."""
    try:
        number = len(list((root / "gpus").iterdir()))
    except OSError:
        return None
    divided = next((root / "capabilities").glob("gpu*/mig/gi*"), None)
    others = next(Path("/dev").glob("kfd"), None)
    return number if number and not divided and not others else None


def _by_environment() -> int | None:
    """As many as a variable names; what follows an invalid name does not count."""
    numbers = []
    for name in VISIBLE:
        if name in os.environ:
            entries = [entry.strip() for entry in os.environ[name].split(",")]
            valid = 0
            for entry in entries:
                if not entry or entry == "-1" or entry.lower() in ("none", "nodevfiles"):
                    break
                valid += 1
            numbers.append(valid)
    return min(numbers, default=None)
