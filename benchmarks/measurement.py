"""Helpers of the benchmarks: CPU pinning, timed commands, medians with their range, tables."""

import fcntl
import os
import platform
import resource
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
TRAIN = HERE.parent / "scripts" / "train.py"


class Finished(NamedTuple):
    """Measurements of a finished command."""

    seconds: float  # from its start to its end
    cpu_s: float  # processor time of its processes together
    output: str  # standard output and standard error


def pin(cores: int, *, gpu: bool = False) -> None:
    """Pin this process and its children to the least busy CPUs, with one thread per CPU.

    Args:
        cores: number of CPUs.
        gpu: keep GPUs visible.
    """
    os.sched_setaffinity(0, _least_busy(cores))
    threads = str(cores)
    os.environ |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONWARNINGS": "ignore"}
    if not gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    paths = [str(HERE), str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)


def run(command: Sequence[str | Path], folder: str | Path) -> Finished:
    """Run a Python command in a pseudo-terminal, so that progress bars are drawn as for a user.

    Args:
        command: arguments of the interpreter.
        folder: working directory.

    Raises:
        SystemExit: the command failed; the message contains its last lines.
    """
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], cwd=folder, stdin=subprocess.DEVNULL, stdout=follower, stderr=follower
    )
    os.close(follower)
    output = _read_terminal(leader)
    code = process.wait()
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        lines = "\n".join(output.splitlines()[-15:])
        raise SystemExit(f"exit code {code}: {' '.join(map(str, command))}\n{lines}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Finished(seconds, cpu_s, output)


def format_median(values: Sequence[float], form: str = ".1f") -> str:
    """Format the median of measurements."""
    return format(median(values), form)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Format the median of ratios with their range."""
    return f"**{median(values):{form}}** ({min(values):{form}} to {max(values):{form}})"


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Return the ratios of measurements that were taken one after the other."""
    return [above / below for above, below in zip(numerators, denominators, strict=True)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format rows as a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def machine() -> str:
    """Return one line about the machine and the versions of libraries."""
    packages = " ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "lightning"))
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    return (
        f"{_processor()}, {cores} of {os.cpu_count()} CPUs, load {load:.1f} before; "
        f"Python {platform.python_version()} {packages}"
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _least_busy(cores: int, seconds: float = 0.5) -> list[int]:
    allowed = os.sched_getaffinity(0)
    before = _idle_ticks()
    time.sleep(seconds)
    after = _idle_ticks()
    return sorted(allowed, key=lambda cpu: before[cpu] - after[cpu])[:cores]


def _idle_ticks() -> dict[int, int]:
    """Return the idle time of each CPU [ticks]."""
    rows = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    return {
        int(row[0].removeprefix("cpu")): int(row[4])
        for row in rows
        if row[0].startswith("cpu") and row[0] != "cpu"
    }


def _read_terminal(leader: int) -> str:
    """Read a pseudo-terminal until its last writer closes it."""
    parts = []
    try:
        while part := os.read(leader, 65536):
            parts.append(part)
    except OSError:  # Linux reports a closed pseudo-terminal as an error
        pass
    finally:
        os.close(leader)
    return b"".join(parts).decode(errors="replace")
