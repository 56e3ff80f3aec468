"""Process of one sweep job, the same for the local, SLURM and Ray launchers.

The scheduler (`job_scheduler`) decides when a job starts; the launcher's engine starts its process.
"""

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

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, env_override, setup_globals
from hydra.types import TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from project.config import hydra_security
from project.config.cli import report
from project.config.hydra_patches import Callbacks, allowing, outcome_of
from project.config.hydra_security import BUILT_BY_HYDRA
from project.config.resolvers import register_resolvers
from project.errors import one_line
from project.runs.run_folder import RunFolder
from project.runtime import lazy_imports
from project.runtime.atomic_files import replace_text
from project.runtime.process import clear_rank_variables, die_with_parent, flush_streams
from project.runtime.signals import SIGNALS
from project.runtime.yaml_files import to_yaml
from project.sweeps.device_slots import DeviceLease, DeviceRequest


@dataclass(frozen=True)
class TaskReference:
    """Reference to a script's main function, which a new process can import."""

    script: str
    name: str

    @classmethod
    def to(cls, function: TaskFunction) -> "TaskReference":
        """Return a reference to a function that is defined in a script."""
        code = function.__code__
        return cls(str(Path(code.co_filename).resolve()), code.co_name)

    def load(self) -> TaskFunction:
        """Import the function without running the script."""
        spec = importlib.util.spec_from_file_location("project_job_script", self.script)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        function = getattr(module, self.name)
        return getattr(function, "__wrapped__", function)


@dataclass(frozen=True)
class JobSpec:
    """Description of a job, sufficient for any process that can access the job's folder."""

    number: int
    overrides: list[str]
    config: DictConfig
    folder: Path
    task: TaskReference
    request: DeviceRequest

    @property
    def log_file(self) -> Path:
        return self.folder / f"{self.config.hydra.job.name}.log"


@dataclass(frozen=True)
class JobMessage:
    """Message that a new job process reads from its standard input."""

    spec: JobSpec
    environment: Mapping[str, str]
    parent: int
    path: list[str] = field(default_factory=lambda: list(sys.path))

    @property
    def rank(self) -> int:
        """Rank of the process if the cluster starts all ranks, otherwise 0."""
        return int(self.environment.get("RANK", "0"))


def run_job(spec: JobSpec, function: TaskFunction | None = None, *, is_rank_zero: bool = True) -> int:
    """Run a job in this process and write the result to the job's folder (rank 0 only).

    Returns:
        The exit code of this process.
    """
    run = RunFolder(spec.folder)
    try:
        _remove_console_handlers(spec.config) if is_rank_zero else _disable_output(spec.config)
        result = run_task(spec.config, function or spec.task.load(), spec.folder)
        if is_rank_zero:
            write_result(run, result)
        if result.status is not JobStatus.COMPLETED:
            raise outcome_of(result)
        return 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        if is_rank_zero and run.read_status().get("state") in ("starting", "running"):
            run.write_status(state="failed", error=f"{type(error).__name__}: {one_line(error)}")
        return report(error)
    finally:
        flush_streams()


def write_result(run: RunFolder, result: JobReturn) -> None:
    """Write the status of a job whose task function does not write one."""
    value = outcome_of(result)
    if result.status is JobStatus.COMPLETED and run.read_status().get("state") == "starting":
        run.write_status(state="done", value=value if isinstance(value, int | float) else None)


def run_task(config: DictConfig, function: TaskFunction, folder: Path) -> JobReturn:
    """Run a task function like Hydra's `run_job`, without copies that a single job does not need."""
    HydraConfig.instance().cfg = config  # type: ignore[assignment]  # without set_config's copy
    task_config: DictConfig = pickle.loads(pickle.dumps(config))  # noqa: S301 (a copy)
    with open_dict(task_config):
        del task_config["hydra"]
    overrides = list(config.hydra.overrides.task)
    result = JobReturn(overrides=overrides, cfg=task_config, task_name=config.hydra.job.name)
    if config.hydra.job.chdir:
        os.chdir(folder)
    result.working_dir = str(Path.cwd())
    with allowing(BUILT_BY_HYDRA):
        configure_log(config.hydra.job_logging, config.hydra.verbose)
        callbacks = Callbacks(config)
    if config.hydra.output_subdir is not None:
        records = folder / config.hydra.output_subdir
        records.mkdir(parents=True, exist_ok=True)
        hydra = OmegaConf.to_container(config.hydra, enum_to_str=True)
        replace_text(records / "config.yaml", to_yaml(task_config))
        replace_text(records / "hydra.yaml", to_yaml({"hydra": hydra}))
        replace_text(records / "overrides.yaml", to_yaml(config.hydra.overrides.task))
    with env_override(config.hydra.job.env_set):
        callbacks.on_job_start(config=config, task_function=function)
        try:
            result.return_value = function(task_config)
            result.status = JobStatus.COMPLETED
        except Exception as error:
            result.return_value, result.status = error, JobStatus.FAILED
    callbacks.on_job_end(config=config, job_return=result)
    return result


def become_job(log: Path | None, environment: Mapping[str, str], parent: int) -> None:
    """Make this process the leader of a job's process group, which dies with the sweep; log to a file."""
    os.setpgid(0, 0)
    die_with_parent(parent)
    for number in SIGNALS:
        is_interrupt = number == signal.SIGINT
        signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # a Ray worker blocks some
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM sends it to all processes; the parent handles it
    if log is not None:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        os.close(descriptor)
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    clear_rank_variables()
    os.environ.update(environment)


def thread_variables(threads: int) -> dict[str, str]:
    """Return the variables that limit a process's threads."""
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def lease_environment(lease: DeviceLease) -> dict[str, str]:
    """Return the variables that limit a job to its own GPUs and threads."""
    variables = thread_variables(lease.threads * lease.request.ranks)  # shared by the ranks
    return variables | ({"CUDA_VISIBLE_DEVICES": ",".join(lease.gpus)} if lease.gpus else {})


def _remove_console_handlers(config: DictConfig) -> None:
    """Remove console log handlers: standard output is the log file, where each line would appear twice."""
    node = config.hydra.job_logging
    if node is None or "handlers" not in node or "root" not in node:
        return
    console = [
        name
        for name, handler in node.handlers.items()
        if str(handler.get("class")).endswith((".StreamHandler", ".ScreenLog"))
    ]
    with read_write(node), open_dict(node):
        if len(node.handlers) > len(console):
            node.root.handlers = [name for name in node.root.handlers if name not in console]


def _disable_output(config: DictConfig) -> None:
    """Disable log files and Hydra's records, which rank 0 writes."""
    with read_write(config.hydra):
        config.hydra.output_subdir = None
        config.hydra.job_logging = {"version": 1, "root": {"handlers": [], "level": "WARNING"}}


def main() -> None:
    """Run the job described on standard input (`python -m project.sweeps.job_process`)."""
    gc.disable()  # until training begins: importing is faster
    lazy_imports.defer_imports()
    setup_globals()  # Hydra's own resolvers
    register_resolvers()
    hydra_security.install()
    message: JobMessage = pickle.load(sys.stdin.buffer)  # noqa: S301 (from the sweep itself, through a pipe)
    sys.path[:] = message.path
    is_rank_zero = message.rank == 0
    become_job(message.spec.log_file if is_rank_zero else None, message.environment, message.parent)
    sys.exit(run_job(message.spec, is_rank_zero=is_rank_zero))


if __name__ == "__main__":
    main()
