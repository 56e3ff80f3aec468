"""The SLURM launcher, which submits each job of a sweep to SLURM through submitit.

Unlike Hydra's submitit plugin, this launcher supports several devices per job (Lightning would start the
sweep again in each rank), limits the number of submitted jobs, and resumes a sweep whose process was killed.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf

from project.errors import InputError
from project.runs.sweep_folder import SweepFolder
from project.runtime.bounds import Range
from project.runtime.extras import install_command
from project.sweeps.device_slots import DeviceRequest, request_devices
from project.sweeps.engine import Engine
from project.sweeps.job_scheduler import JobList, JobSource
from project.sweeps.launchers.base import ScheduledLauncher
from project.sweeps.live_view import LiveView

REQUEUE_MARGIN_S = 30
"""Time between the end of a job's grace period and SLURM's time limit, for SLURM to requeue the job [s]."""

# Configurations may come from other people and must not inject commands into the batch script.
WORD = r"[\w./:+@%,=~-]+"
SETUP_LINE = re.compile(
    rf"(module|ml)( {WORD})+|conda activate {WORD}|source {WORD}|ulimit( {WORD})+|export (?P<name>\w+)={WORD}"
)
"""Allowed shell lines before a job: one command each, without expansions and redirections."""
CODE_VARIABLE = re.compile(r"(LD_|DYLD_|PYTHON|BASH|HYDRA_|TORCH_FORCE|PATH$|ENV$|IFS$)")
"""Prefixes of environment variables that load code or disable checks."""
SBATCH_NAME = re.compile(r"[A-Za-z][\w-]*")
REFUSED_NAMES = frozenset({"wrap", "export", "export_file"})


class SlurmLauncher(ScheduledLauncher):
    """Submit each job of the sweep to SLURM.

    Args:
        partition, account, qos: options of `sbatch`.
        timeout_min: time limit of a job, which is requeued shortly before and resumes [min].
        gpus_per_node: GPUs per node (`auto`: `trainer.devices`).
        cpus_per_task: CPUs per job on one node, or per rank on several nodes.
        mem_gb: memory per node [GB].
        jobs: maximum number of submitted jobs, queued ones included (None: all of them); with `array`, of
            running jobs.
        array: submit the jobs of a grid as job arrays, one for all jobs with the same options.
        max_requeues: maximum number of requeues of a job that reached its time limit.
        additional: other options of `sbatch`.
        setup: shell lines before each job.
        fail_fast: stop the sweep when a job fails.
        grace_s: time that jobs have to stop [s].
        poll_s: interval between checks of the jobs' states [s].
        submit_timeout_min: time after which the sweep ends if SLURM accepts no job and runs none of it [min].
    """

    def __init__(
        self,
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
        timeout_min: Annotated[float, Range(above=0)] = 60,
        gpus_per_node: Annotated[int, Range(0)] | Literal["auto"] = "auto",
        cpus_per_task: Annotated[int, Range(1)] | None = None,
        mem_gb: Annotated[float, Range(above=0)] | None = None,
        jobs: Annotated[int, Range(1)] | None = None,
        array: bool = False,
        max_requeues: Annotated[int, Range(0)] = 3,
        additional: Mapping[str, Any] | None = None,
        setup: Sequence[str] = (),
        fail_fast: bool = False,
        grace_s: Annotated[float, Range(0)] = 30.0,
        poll_s: Annotated[float, Range(above=0)] = 2.0,
        submit_timeout_min: Annotated[float, Range(0)] = 60,
    ) -> None:
        super().__init__(fail_fast, grace_s)
        self.options = {"partition": partition, "account": account, "qos": qos}
        self.additional = dict(additional or {})
        self.setup_lines = list(setup)
        refuse_options("hydra.launcher", self.options)
        refuse_options("hydra.launcher.additional", self.additional)
        refuse_setup(setup)
        self.timeout_min = timeout_min
        self.gpus_per_node = gpus_per_node
        self.cpus_per_task = cpus_per_task
        self.mem_gb = mem_gb
        self.jobs = jobs
        self.array = array
        self.max_requeues = max_requeues
        self.poll_s = poll_s
        self.submit_timeout_min = submit_timeout_min

    def run(self, folder: SweepFolder, source: JobSource, view: LiveView, targets: Iterable[str]) -> int:
        if self.array and not isinstance(source, JobList):
            raise InputError(
                "hydra.launcher.array=true: a search starts its jobs one by one, each after results of "
                "earlier ones; set hydra.launcher.array=false"
            )
        if self.array and (timeout_s := OmegaConf.select(self.config, "hydra.sweeper.timeout_s")):
            raise InputError(
                f"hydra.sweeper.timeout_s={timeout_s}: has no effect, as an array submits all jobs at once; "
                "set hydra.launcher.array=false"
            )
        return super().run(folder, source, view, targets)

    def make_engine(self, num_jobs: int, targets: Iterable[str]) -> Engine:
        try:
            from project.sweeps.launchers.slurm_engine import SlurmEngine
        except ModuleNotFoundError as error:
            raise InputError(
                f"hydra/launcher=slurm: needs submitit; run {install_command('slurm')}"
            ) from error
        return SlurmEngine(self)

    def request_devices(self, config: DictConfig) -> DeviceRequest:
        request = self._request_on_node(config.trainer)
        nodes = int(config.trainer.num_nodes)
        return DeviceRequest(nodes * request.ranks, nodes * self._gpus_on_node(request))

    def sbatch_options(self, trainer: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Return the parameters of a job for submitit's executor."""
        request, nodes = self._request_on_node(trainer), int(trainer["num_nodes"])
        delay_s = min(
            self.grace_s + REQUEUE_MARGIN_S, self.timeout_min * 30
        )  # at most half of the time limit
        step = ["--kill-on-bad-exit=1"]  # an error in one rank ends the others
        if self.cpus_per_task is not None:
            step.append(f"--cpus-per-task={self.cpus_per_task}")  # srun does not inherit it from sbatch
        options = {
            **self.options,
            "job_name": name,
            "time": math.ceil(self.timeout_min),
            "signal_delay_s": math.ceil(delay_s),
            "setup": self.setup_lines or None,
            "nodes": nodes,
            "ntasks_per_node": 1 if nodes == 1 else request.ranks,  # on one node, the job forks its ranks
            "gpus_per_node": self._gpus_on_node(request) or None,
            "cpus_per_task": self.cpus_per_task,
            "mem": None if self.mem_gb is None else f"{math.ceil(self.mem_gb * 1024)}M",
            "srun_args": step,
            "additional_parameters": self.additional or None,
        }
        return {name: value for name, value in options.items() if value is not None}

    def _request_on_node(self, trainer: Mapping[str, Any]) -> DeviceRequest:
        key = "hydra.launcher.gpus_per_node"
        return request_devices(trainer, None, self.gpus_per_node, key, allow_spare=True)

    def _gpus_on_node(self, request: DeviceRequest) -> int:
        return int(request.gpus) if self.gpus_per_node == "auto" else int(self.gpus_per_node)


def refuse_options(key: str, options: Mapping[str, Any]) -> None:
    """Refuse sbatch options that could add lines to the batch script."""
    for name, value in options.items():
        if not SBATCH_NAME.fullmatch(str(name)) or str(name).replace("-", "_") in REFUSED_NAMES:
            raise InputError(f"{key}.{name!r}: not an allowed option; see `man sbatch` for names")
        if any(not character.isprintable() for character in str(value)):
            raise InputError(f"{key}.{name}={value!r}: contains a control character; give one line of text")


def refuse_setup(lines: Sequence[str]) -> None:
    """Refuse shell lines other than the allowed commands."""
    for line in lines:
        found = SETUP_LINE.fullmatch(str(line))
        if found is None or (found["name"] and CODE_VARIABLE.match(found["name"])):
            raise InputError(
                f"hydra.launcher.setup: {line!r} may not be run; lines are `module load …`, `conda activate "
                "…`, `source FILE`, `ulimit …` and `export NAME=value`; put more into a file of your own, "
                "and source that"
            )
