"""Commands in forks of this process, which save the seconds of imports."""

import contextlib
import gc
import os
import signal
import sys
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from exit_kinds import wait_for_end
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import project.train  # noqa: F401 (imported once for all forks)
from project.commands import train_run
from project.config import cli
from project.config.config_files import conf_folder
from project.runs.run_folder import RunFolder
from project.runtime.process import die_with_parent

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT_S = 300
"""Time after which a command counts as hanging [s]; the machine may be busy."""


def start(
    arguments: Sequence[str],
    cwd: Path,
    *,
    script: str = "train",
    before: Callable[[], object] | None = None,
    variables: Mapping[str, str] = MappingProxyType({}),
    streams: tuple[int, int] | None = None,
    command: Callable[[], object] | None = None,
) -> int:
    """Start `python scripts/<script>.py <arguments>` in `cwd`, with output to `cwd/log`.

    Args:
        arguments: arguments of the command line.
        cwd: working directory.
        script: name of the script.
        before: function called first in the new process.
        variables: additional environment variables.
        streams: descriptors of standard output and standard error [the log].
        command: function called instead of the script.

    Returns:
        The process id.
    """
    torch.set_num_threads(1)
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    gc.freeze()  # a collection would copy all memory of the parent
    try:
        os.setpgid(0, 0)
        die_with_parent(parent)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):  # nohup ignores SIGHUP
            signal.signal(number, signal.SIG_DFL)
        os.chdir(cwd)
        os.environ.update(variables)
        _write_to(streams or (os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND),) * 2)
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None
        sys.argv = [str(ROOT / "scripts" / f"{script}.py"), *arguments]
        for finalizer in list(weakref.finalize._registry):
            finalizer.detach()  # temporary folders belong to the parent
        if before is not None:
            before()
        if command is not None:
            command()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        cli.run(train_run, conf_folder(), script)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(99)


def _write_to(streams: tuple[int, int]) -> None:
    """Redirect standard output and standard error, past the capture of pytest."""
    for standard, descriptor in enumerate(streams, start=1):
        os.dup2(descriptor, standard)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w")
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1)


def wait(pid: int, limit_s: float = LIMIT_S) -> int:
    """Wait for the end of a process; return the exit code, negative for a signal."""
    code = wait_for_end(pid, limit_s)
    assert code is not None, f"process {pid} had not ended after {limit_s} s"
    return code


def run(arguments: list[str], cwd: Path, *, code: int = 0, **options: Callable[[], object]) -> str:
    """Run a command to its end, and return its output.

    Raises:
        AssertionError: the exit code is not `code`.
    """
    cwd.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        (cwd / "log").unlink()
    found = wait(start(arguments, cwd, **options))
    printed = (cwd / "log").read_text()
    assert found == code, f"{arguments}: exit code {found}, not {code}\n{printed}"
    return printed


def only_run(cwd: Path) -> RunFolder:
    """Return the only run folder below `cwd`."""
    (found,) = {file.parent for file in cwd.glob("outputs/*/*/status.json")}
    return RunFolder(found)


def state_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint by name: weights, optimizer state, weight averages."""
    tensors: dict[str, torch.Tensor] = {}

    def collect(name: str, node: object) -> None:
        if isinstance(node, torch.Tensor):
            tensors[name] = node
        elif isinstance(node, dict | list):
            for key, child in node.items() if isinstance(node, dict) else enumerate(node):
                collect(
                    f"{name}.{Path(key).name if '/' in str(key) else key}", child
                )  # the folders of runs differ

    collect("", torch.load(checkpoint, weights_only=True))
    return tensors


def difference(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> str:
    """Return the name of the first tensor that is not bit-identical in two states, else an empty string."""
    if found.keys() != wanted.keys():
        return f"other tensors: {sorted(found.keys() ^ wanted.keys())[:5]}"
    return next((name for name, value in wanted.items() if not torch.equal(found[name], value)), "")
