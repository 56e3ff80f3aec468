"""What the process of one job does: the same wherever it runs."""

import gc
import importlib.util
import os
import pickle
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.utils import JobStatus, setup_globals
from hydra.types import TaskFunction
from omegaconf import DictConfig, open_dict, read_write

from project.config import hydra_security, resolvers
from project.config.cli import report
from project.errors import one_line
from project.runs.run_folder import RunFolder
from project.runtime import training_imports
from project.runtime.signals import SIGNALS
from project.runtime.streams import die_with_parent, flush, forget_ranks
from project.sweeps.device_slots import Grant, Need
from project.sweeps.hydra_job import run_task


@dataclass(frozen=True)
class Order:
    """One job, ready to run in any process of any machine that sees its folder.

    Args:
        number: of the job.
        config: composed, with Hydra's own node.
        folder: absolute path of its run folder.
        task: what is run with the configuration.
        need: its devices.
    """

    number: int
    config: DictConfig
    folder: Path
    task: "Task"
    need: Need


@dataclass(frozen=True)
class Task:
    """A script's main function, by name: a fresh process finds it again.

    Args:
        script: file that it stands in.
        name: of the function, undecorated or decorated by `hydra.main`.
    """

    script: str
    name: str

    @classmethod
    def of(cls, function: TaskFunction) -> "Task":
        """Name a function."""
        code = function.__code__
        return cls(str(Path(code.co_filename).resolve()), code.co_name)

    def load(self) -> TaskFunction:
        """Import the function, without running the script."""
        spec = importlib.util.spec_from_file_location("project_job_script", self.script)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        function = getattr(module, self.name)
        return getattr(function, "__wrapped__", function)


def log_of(order: Order) -> Path:
    """Where a job's output goes."""
    return order.folder / f"{order.config.hydra.job.name}.log"


def run_order(order: Order, function: TaskFunction | None = None, *, first: bool = True) -> int:
    """Run a job in this process, and write its result into its folder.

    Args:
        order: the job.
        function: the task, if this process has it already.
        first: this process writes the job's folder; False in further ranks that a cluster has started.

    Returns:
        The exit code for this process.
    """
    run = RunFolder(order.folder)
    config = order.config
    try:
        _use_one_log(config) if first else _write_nothing(config)
        outcome = run_task(config, function or order.task.load(), order.folder)
        value = outcome._return_value
        if outcome.status is not JobStatus.COMPLETED:
            raise value
        if first and run.read_status().get("state") == "starting":  # a task that keeps no status itself
            run.write_status(state="done", value=value if isinstance(value, int | float) else None)
        return 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        if first and run.read_status().get("state") in ("starting", "running"):
            run.write_status(state="failed", error=f"{type(error).__name__}: {one_line(error)}")
        return report(error)
    finally:
        flush()


def become_job(log: Path | None, environment: Mapping[str, str], parent: int) -> None:
    """Make this process the first one of a job: of a process group of its own, and writing to its log.

    Args:
        log: where all output goes, that of libraries and of crashes too; None: where it goes already.
        environment: variables to set.
        parent: process id of the sweep, with which the job ends.
    """
    os.setpgid(0, 0)
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in {*SIGNALS} - {signal.SIGINT}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # some of which a Ray worker blocks
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # by which SLURM warns all processes; the parent acts on it
    if log is not None:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        os.close(descriptor)
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    forget_ranks()
    os.environ.update(environment)


def environment_of(grant: Grant) -> dict[str, str]:
    """Variables by which a job sees its own devices alone, and no more threads than it was given."""
    threads = str(grant.threads * grant.need.ranks)  # ranks share them
    variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if grant.gpus:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(grant.gpus)
    return variables


def _use_one_log(config: DictConfig) -> None:
    """Keep log messages off the screen, which is the log file here: they would stand there twice."""
    node = config.hydra.job_logging
    if node is None or "handlers" not in node or "root" not in node:
        return
    screens = [name for name, handler in node.handlers.items() if _writes_to_screen(handler)]
    with read_write(node), open_dict(node):
        if len(node.handlers) > len(screens):
            node.root.handlers = [name for name in node.root.handlers if name not in screens]


def _write_nothing(config: DictConfig) -> None:
    """Leave the job's folder to its first process."""
    with read_write(config.hydra):
        config.hydra.output_subdir = None
        config.hydra.job_logging = {"version": 1, "root": {"handlers": [], "level": "WARNING"}}


def _writes_to_screen(handler: Mapping[str, Any]) -> bool:
    return str(handler.get("class")).endswith(".StreamHandler")


@dataclass(frozen=True)
class Letter:
    """What a fresh process is told on its standard input.

    Args:
        order: the job.
        environment: variables to set.
        parent: process id of the sweep.
        path: where Python finds modules.
    """

    order: Order
    environment: Mapping[str, str]
    parent: int
    path: list[str] = field(default_factory=lambda: list(sys.path))

    @property
    def rank(self) -> int:
        """Which of the job's processes this is, where a cluster starts them all."""
        return int(self.environment.get("RANK", "0"))


def main() -> None:
    """Run the job whose letter stands on the standard input: `python -m project.sweeps.job_process`."""
    gc.disable()  # until training begins: importing is faster
    training_imports.defer()
    setup_globals()  # Hydra's own resolvers
    resolvers.register()
    hydra_security.install()
    letter: Letter = pickle.load(sys.stdin.buffer)  # noqa: S301 (from the sweep itself, through a pipe)
    sys.path[:] = letter.path
    first = letter.rank == 0
    become_job(log_of(letter.order) if first else None, letter.environment, letter.parent)
    sys.exit(run_order(letter.order, first=first))


if __name__ == "__main__":
    main()
