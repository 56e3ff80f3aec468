"""The launcher for SLURM: each job of a sweep is one of SLURM's, submitted by submitit.

The published submitit plugin is not used: its jobs cannot train on several devices (Lightning starts the
sweep again in each rank), their number has no limit, and a sweep cannot go on after its process was killed.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from omegaconf import DictConfig

from project.errors import InputError
from project.runtime.devices import visible_gpus
from project.runtime.torchrun import number_of
from project.sweeps.device_slots import Need
from project.sweeps.launchers.base import StreamingLauncher
from project.sweeps.launchers.slurm_script import refuse_settings, refuse_setup
from project.sweeps.process_engine import Engine
from project.sweeps.settings import Count, Least, Positive, Seconds, checked_options

if TYPE_CHECKING:
    from project.sweeps.launchers.slurm_submit import Cluster

MARGIN_S = 30
"""Seconds between the end of a job's grace and that of its time, for SLURM to take it back."""


class SlurmJobs(StreamingLauncher):
    """A SLURM job for each job of the sweep.

    Args:
        cluster: `slurm`; `local`: submitit's stand-in for it on this machine, to try things out.
        partition, account, qos: as `sbatch` takes them.
        timeout_min: minutes after which SLURM ends a job; it is requeued before and goes on.
        gpus_per_node: `auto`: as `trainer.devices` says.
        cpus_per_task: for a whole job on one node; for each device's process on several.
        mem_gb: memory on each node.
        jobs: at a time, waiting ones included; None: all of them.
        max_requeues: how often a job whose time was over is started again.
        additional: further parameters of `sbatch`.
        setup: lines of shell before each job.
        fail_fast: stop the sweep when a job fails.
        grace_s: seconds that jobs have to stop.
        poll_s: seconds between looks at what became of the jobs.
    """

    @checked_options("hydra.launcher")
    def __init__(
        self,
        cluster: Literal["slurm", "local"] = "slurm",
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
        timeout_min: Positive = 60,
        gpus_per_node: Annotated[int, Least(0)] | Literal["auto"] = "auto",
        cpus_per_task: Count | None = None,
        mem_gb: Positive | None = None,
        jobs: Count | None = None,
        max_requeues: Annotated[int, Least(0)] = 3,
        additional: Mapping[str, Any] | None = None,
        setup: Sequence[str] = (),
        fail_fast: bool = False,
        grace_s: Seconds = 30.0,
        poll_s: Positive = 2.0,
    ) -> None:
        super().__init__(fail_fast, grace_s)
        refuse_settings("hydra.launcher", {"partition": partition, "account": account, "qos": qos})
        refuse_settings("hydra.launcher.additional", additional or {})
        refuse_setup(setup)
        self.cluster = cluster
        self.options = {"partition": partition, "account": account, "qos": qos}
        self.timeout_min = timeout_min
        self.gpus_per_node = gpus_per_node
        self.cpus_per_task = cpus_per_task
        self.mem_gb = mem_gb
        self.jobs = jobs
        self.max_requeues = max_requeues
        self.additional = dict(additional or {})
        self.setup_lines = list(setup)
        self.poll_s = poll_s

    def engine(self, expected: int, targets: Iterable[str]) -> Engine:
        """See `StreamingLauncher`."""
        try:
            from project.sweeps.launchers.slurm_submit import SubmittingEngine
        except ModuleNotFoundError as error:
            raise InputError(
                "hydra/launcher=slurm: needs submitit; uv sync --extra slurm / pip install 'project[slurm]'"
            ) from error
        return SubmittingEngine(self._open(), self)

    def need(self, config: DictConfig) -> Need:
        """See `StreamingLauncher`."""
        shape = self.shape(config.trainer)
        return Need(shape.nodes * shape.devices, shape.nodes * shape.gpus_per_node)

    def shape(self, trainer: Mapping[str, Any]) -> "Shape":
        """Nodes and devices of a job."""
        found = len(visible_gpus()) if self.cluster == "local" else None
        shape = shape_of(trainer, self.gpus_per_node, found)
        if self.cluster == "local" and shape.nodes > 1:
            raise InputError(
                f"trainer.num_nodes={shape.nodes}: hydra.launcher.cluster=local is one machine; set 1"
            )
        return shape

    def parameters(self, trainer: Mapping[str, Any], name: str) -> dict[str, Any]:
        """What submitit is told of a job, in its executor's words.

        Args:
            trainer: the job's settings.
            name: that SLURM shows.
        """
        shape = self.shape(trainer)
        delay_s = min(self.grace_s + MARGIN_S, self.timeout_min * 30)  # before at most half of the time
        common: dict[str, Any] = {"signal_delay_s": math.ceil(delay_s), "setup": self.setup_lines or None}
        if self.cluster == "local":
            common |= {"timeout_min": self.timeout_min, "tasks_per_node": shape.tasks_per_node}
            return _given(common | {"gpus_per_node": shape.gpus_per_node})
        step = {"kill-on-bad-exit": 1}  # one rank's error ends the others
        if self.cpus_per_task is not None:
            step["cpus-per-task"] = self.cpus_per_task  # which srun does not take over from sbatch
        return _given(
            common
            | self.options
            | {
                "job_name": name,
                "time": math.ceil(self.timeout_min),
                "nodes": shape.nodes,
                "ntasks_per_node": shape.tasks_per_node,
                "gpus_per_node": shape.gpus_per_node or None,
                "cpus_per_task": self.cpus_per_task,
                "mem": None if self.mem_gb is None else f"{math.ceil(self.mem_gb * 1024)}M",
                "srun_args": [f"--{option}={value}" for option, value in step.items()],
                "additional_parameters": self.additional or None,
            }
        )

    def _open(self) -> "Cluster":
        from project.sweeps.launchers.slurm_submit import LocalCluster, SlurmCluster

        kind = SlurmCluster if self.cluster == "slurm" else LocalCluster
        return kind(self.parameters, self.max_requeues)


@dataclass(frozen=True)
class Shape:
    """Where a job runs.

    Args:
        nodes: machines.
        devices: used on each of them.
        gpus_per_node: asked for on each of them.
    """

    nodes: int
    devices: int
    gpus_per_node: int

    @property
    def tasks_per_node(self) -> int:
        """Processes that SLURM starts: on one node the job forks its ranks, as it does anywhere."""
        return 1 if self.nodes == 1 else self.devices


def shape_of(trainer: Mapping[str, Any], gpus_per_node: int | str, found: int | None) -> Shape:
    """The nodes and devices that a job asks for.

    Args:
        trainer: `accelerator`, `devices` and `num_nodes`.
        gpus_per_node: `auto`: as `trainer.devices` says.
        found: GPUs of this machine if the jobs run on it.

    Raises:
        InputError: the settings contradict each other, or do not say what the nodes must have.
    """
    accelerator, devices, nodes = str(trainer["accelerator"]), trainer["devices"], int(trainer["num_nodes"])
    everything = devices in ("auto", -1, "-1")
    given = None if gpus_per_node == "auto" else int(gpus_per_node)
    on_gpu = accelerator in ("gpu", "cuda")
    if accelerator == "auto":
        if given is None and found is None:
            raise InputError(
                "trainer.accelerator=auto: what the cluster's nodes have is not known here; set "
                "trainer.accelerator=gpu or trainer.accelerator=cpu"
            )
        on_gpu = bool(found if given is None else given)
    if not on_gpu:
        return Shape(nodes, 1 if everything else number_of(devices), given or 0)
    if everything and given is None:
        raise InputError(
            f"trainer.devices={devices}: how many GPUs a node has is not known here; set trainer.devices or "
            "hydra.launcher.gpus_per_node"
        )
    wanted = given if everything and given is not None else number_of(devices)
    if given is not None and not 0 < wanted <= given:
        raise InputError(
            f"hydra.launcher.gpus_per_node={given}: a job trains on trainer.devices={devices} of each node"
        )
    return Shape(nodes, wanted, wanted if given is None else given)


def _given(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}
