"""The process of one job: the same on this machine, below SLURM and below Ray."""

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

from project.config import hydra_security, resolvers
from project.config.cli import report
from project.config.hydra_patches import Callbacks, allowing
from project.config.hydra_security import BUILT_BY_HYDRA
from project.errors import one_line
from project.runs.run_folder import RunFolder
from project.runtime import lazy_imports
from project.runtime.atomic_files import replace_text
from project.runtime.process import die_with_parent, flush_streams, forget_ranks
from project.runtime.signals import SIGNALS
from project.runtime.yaml_files import to_yaml
from project.sweeps.device_slots import DeviceLease, DeviceRequest


@dataclass(frozen=True)
class Task:
    """Main function of a script, by name, so that a fresh process can import it."""

    script: str
    name: str

    @classmethod
    def of(cls, function: TaskFunction) -> "Task":
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
    """A job that any process of any machine can run that sees its folder."""

    number: int
    overrides: list[str]
    config: DictConfig
    folder: Path
    task: Task
    request: DeviceRequest

    @property
    def log_file(self) -> Path:
        return self.folder / f"{self.config.hydra.job.name}.log"


@dataclass(frozen=True)
class JobMessage:
    """Content of a fresh process's standard input."""

    spec: JobSpec
    environment: Mapping[str, str]
    parent: int
    path: list[str] = field(default_factory=lambda: list(sys.path))

    @property
    def rank(self) -> int:
        """Rank of the process where a cluster starts all ranks, else 0."""
        return int(self.environment.get("RANK", "0"))


def run_job(spec: JobSpec, function: TaskFunction | None = None, *, is_first: bool = True) -> int:
    """Run a job in this process, and write its result into its folder, but in further ranks of a cluster.

    Returns:
        The exit code of this process.
    """
    run = RunFolder(spec.folder)
    try:
        _use_one_log(spec.config) if is_first else _write_nothing(spec.config)
        result = run_task(spec.config, function or spec.task.load(), spec.folder)
        if is_first:
            write_result(run, result)
        if result.status is not JobStatus.COMPLETED:
            raise result._return_value
        return 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        if is_first and run.read_status().get("state") in ("starting", "running"):
            run.write_status(state="failed", error=f"{type(error).__name__}: {one_line(error)}")
        return report(error)
    finally:
        flush_streams()


def write_result(run: RunFolder, result: JobReturn) -> None:
    """Write the value of a task that does not write a status itself."""
    value = result._return_value
    if result.status is JobStatus.COMPLETED and run.read_status().get("state") == "starting":
        run.write_status(state="done", value=value if isinstance(value, int | float) else None)


def run_task(config: DictConfig, function: TaskFunction, folder: Path) -> JobReturn:
    """Do the same as Hydra's `run_job`, without copies that the only job of a process does not need."""
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
    """Make this process the leader of a job's group, which ends with the sweep and writes to a log."""
    os.setpgid(0, 0)
    die_with_parent(parent)
    for number in SIGNALS:
        is_interrupt = number == signal.SIGINT
        signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # a Ray worker blocks some
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM warns all processes; the parent handles it
    if log is not None:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        os.close(descriptor)
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    forget_ranks()
    os.environ.update(environment)


def thread_variables(threads: int) -> dict[str, str]:
    """Return the variables that limit a process's threads."""
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def lease_environment(lease: DeviceLease) -> dict[str, str]:
    """Return the variables that limit a job to its own GPUs and threads."""
    variables = thread_variables(lease.threads * lease.request.ranks)  # the ranks share them
    return variables | ({"CUDA_VISIBLE_DEVICES": ",".join(lease.gpus)} if lease.gpus else {})


def _use_one_log(config: DictConfig) -> None:
    """Remove log handlers of the screen, which is the log file here: each line would stand there twice."""
    node = config.hydra.job_logging
    if node is None or "handlers" not in node or "root" not in node:
        return
    screens = [
        name for name, one in node.handlers.items() if str(one.get("class")).endswith(".StreamHandler")
    ]
    with read_write(node), open_dict(node):
        if len(node.handlers) > len(screens):
            node.root.handlers = [name for name in node.root.handlers if name not in screens]


def _write_nothing(config: DictConfig) -> None:
    with read_write(config.hydra):
        config.hydra.output_subdir = None
        config.hydra.job_logging = {"version": 1, "root": {"handlers": [], "level": "WARNING"}}


def main() -> None:
    """Run the job of the message on standard input, as `python -m project.sweeps.job_process`."""
    gc.disable()  # until training begins: importing is faster
    lazy_imports.defer_imports()
    setup_globals()  # Hydra's own resolvers
    resolvers.register()
    hydra_security.install()
    message: JobMessage = pickle.load(sys.stdin.buffer)  # noqa: S301 (from the sweep itself, through a pipe)
    sys.path[:] = message.path
    is_first = message.rank == 0
    become_job(message.spec.log_file if is_first else None, message.environment, message.parent)
    sys.exit(run_job(message.spec, is_first=is_first))


if __name__ == "__main__":
    main()
