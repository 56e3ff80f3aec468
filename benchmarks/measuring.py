"""Shared by the benchmarks: pinning to cores, commands, medians with their spread, tables."""

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
    """A command that has ended."""

    seconds: float  # from its start to its end
    cpu_s: float  # processor time of its processes together
    output: str  # what it wrote on the screen


def pin(cores: int, *, gpu: bool = False) -> None:
    """Confine this process and all that it starts to the least busy CPUs, a thread for each.

    Args:
        cores: how many.
        gpu: leave GPUs visible.
    """
    os.sched_setaffinity(0, _least_busy(cores))
    threads = str(cores)
    os.environ |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONWARNINGS": "ignore"}
    if not gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    paths = [str(HERE), str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)


def run(command: Sequence[str | Path], folder: str | Path) -> Finished:
    """Run a Python command on a terminal, so that progress bars are drawn as a user sees them.

    Args:
        command: arguments of the interpreter.
        folder: its working directory.

    Raises:
        SystemExit: it failed; its last lines are shown.
    """
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], cwd=folder, stdin=subprocess.DEVNULL, stdout=follower, stderr=follower
    )
    os.close(follower)
    output = _everything(leader)
    code = process.wait()
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        lines = "\n".join(output.splitlines()[-15:])
        raise SystemExit(f"exit code {code}: {' '.join(map(str, command))}\n{lines}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Finished(seconds, cpu_s, output)


def middle(values: Sequence[float], form: str = ".1f") -> str:
    """Median of some measurements."""
    return format(median(values), form)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Median of some ratios, with the least and the greatest."""
    return f"**{median(values):{form}}** ({min(values):{form}} to {max(values):{form}})"


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Ratios of neighbours in time."""
    return [above / below for above, below in zip(numerators, denominators, strict=True)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table."""
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
    """Time that each CPU has had nothing to do."""
    rows = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    return {
        int(row[0].removeprefix("cpu")): int(row[4])
        for row in rows
        if row[0].startswith("cpu") and row[0] != "cpu"
    }


def _everything(leader: int) -> str:
    """Read a terminal until its last writer has gone."""
    parts = []
    try:
        while part := os.read(leader, 65536):
            parts.append(part)
    except OSError:  # so Linux says that no process has it open any more
        pass
    finally:
        os.close(leader)
    return b"".join(parts).decode(errors="replace")
