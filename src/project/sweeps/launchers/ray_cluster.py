"""The launcher for Ray: each job of a sweep is a Ray task.

The published Ray plugin is not used: its jobs cannot train on several devices (Lightning starts the sweep
again in each rank), and it gives all jobs to Ray at once and tells of none before all have ended.
"""

import os
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

from omegaconf import DictConfig

from project.errors import InputError, one_line
from project.runs.sweep_folder import SweepFolder
from project.runtime.devices import available_cpus, visible_gpus
from project.runtime.torchrun import number_of
from project.sweeps.device_slots import Need
from project.sweeps.job_process import Letter, Order
from project.sweeps.launchers.base import StreamingLauncher
from project.sweeps.launchers.nested import run_below
from project.sweeps.live_view import View
from project.sweeps.process_engine import Ended, Engine
from project.sweeps.scheduler import Source
from project.sweeps.settings import Count, Least, Seconds, checked_options

if TYPE_CHECKING:
    import ray

STORE_BYTES = 100 * 2**20
"""Of a local Ray's memory for objects: jobs hand over nothing but their configuration and exit code."""

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # sends nothing about this machine
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else workers of a sweep under `uv run` make an environment each
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
"""Variables that Ray reads when it is imported."""

ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Has a local Ray listen on 127.0.0.1, as it does by itself on Windows; elsewhere it listens to everybody,
whatever address it is given."""


class RayTasks(StreamingLauncher):
    """A Ray task for each job of the sweep.

    Args:
        address: None: a Ray of this sweep's own, on this machine alone; `auto`: the one that runs here;
            `ray://HOST:PORT` or `HOST:PORT`: a cluster, which shares the disk of the sweep's folder.
        num_cpus: of a job; `auto`: one for each of its processes.
        num_gpus: of a job; `auto`: as `trainer.devices` says; below 1: several jobs share one.
        jobs: at a time; None: as many as Ray has room for.
        resources: of a job, by the names that the cluster gave them.
        fail_fast: stop the sweep when a job fails.
        grace_s: seconds that jobs have to stop when the sweep is stopped.
    """

    @checked_options("hydra.launcher")
    def __init__(
        self,
        address: str | None = None,
        num_cpus: Annotated[float, Least(0)] | Literal["auto"] = "auto",
        num_gpus: Annotated[float, Least(0)] | Literal["auto"] = "auto",
        jobs: Count | None = None,
        resources: Mapping[str, Annotated[float, Least(0)]] | None = None,
        fail_fast: bool = False,
        grace_s: Seconds = 30.0,
    ) -> None:
        super().__init__(fail_fast, grace_s)
        if num_gpus != "auto" and num_gpus > 1 and num_gpus != int(num_gpus):
            raise InputError(f"hydra.launcher.num_gpus={num_gpus}: above 1, Ray gives whole ones; round it")
        self.address = address
        self.num_cpus = num_cpus
        self.num_gpus = num_gpus
        self.jobs = jobs
        self.resources = {str(name): float(value) for name, value in (resources or {}).items()}

    def run(self, folder: SweepFolder, source: Source, view: View, targets: Iterable[str]) -> int:
        """See `StreamingLauncher`. Ray ends with the sweep; a cluster's goes on without it."""
        self.connect()
        import ray

        try:
            return super().run(folder, source, view, targets)
        finally:
            ray.shutdown()

    def connect(self) -> None:
        """Start Ray, or find the one that is meant.

        Raises:
            InputError: it is not installed, or does not answer.
        """
        variables = QUIET | (ALONE if self.address is None else {})
        os.environ |= {name: os.environ.get(name, value) for name, value in variables.items()}
        try:
            import ray
        except ModuleNotFoundError as error:
            raise InputError(
                "hydra/launcher=ray: needs ray; uv sync --extra ray / pip install 'project[ray]'"
            ) from error
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address is None:
            ray.init(
                address="local",
                num_cpus=available_cpus(),
                include_dashboard=False,
                object_store_memory=STORE_BYTES,
                _node_ip_address="127.0.0.1",
                **quiet,
            )
            return
        try:
            ray.init(address=self.address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                f"hydra.launcher.address={self.address}: no Ray answers there ({one_line(error)}); start one "
                "with `ray start --head`, or leave the address out"
            ) from error

    def engine(self, expected: int, targets: Iterable[str]) -> Engine:
        """See `StreamingLauncher`."""
        return RayEngine(self.demand, self.jobs, self.grace_s)

    def need(self, config: DictConfig) -> Need:
        """See `StreamingLauncher`."""
        trainer = config.trainer
        if trainer.num_nodes > 1:
            raise InputError(
                f"trainer.num_nodes={trainer.num_nodes}: a job is one Ray task, on one node; set 1, or use "
                "hydra/launcher=slurm"
            )
        gpus = self._gpus(str(trainer.accelerator), trainer.devices)
        if gpus:
            return Need(max(1, int(gpus)), gpus)
        return Need(1 if trainer.devices in ("auto", -1, "-1") else number_of(trainer.devices))

    def demand(self, need: Need) -> dict[str, float]:
        """What Ray is asked for, by the names that it uses."""
        cpus = float(need.ranks if self.num_cpus == "auto" else self.num_cpus)
        if self.address is None and self.num_cpus == "auto":
            cpus = min(cpus, available_cpus())  # a job too large for this machine may run alone
        return {"CPU": cpus, "GPU": need.gpus, **self.resources}

    def _gpus(self, accelerator: str, devices: Any) -> float:
        """GPUs that a job is given."""
        on_gpu = accelerator in ("gpu", "cuda")
        if accelerator == "auto":
            on_gpu = bool(visible_gpus()) if self.num_gpus == "auto" else self.num_gpus > 0
        if not on_gpu:
            return 0.0
        everything = devices in ("auto", -1, "-1")
        if self.num_gpus == "auto":
            if everything:
                raise InputError(
                    f"trainer.devices={devices}: how many GPUs a job gets must be said; set trainer.devices "
                    "or hydra.launcher.num_gpus"
                )
            return float(number_of(devices))
        if not self.num_gpus or (not everything and number_of(devices) != max(1, int(self.num_gpus))):
            raise InputError(
                f"hydra.launcher.num_gpus={self.num_gpus}: a job trains on trainer.devices={devices}; make "
                "them agree"
            )
        return float(self.num_gpus)


class RayEngine:
    """See `Engine`.

    Args:
        demand: says what a job asks Ray for.
        jobs: at a time; None: as many as Ray has room for.
        grace_s: seconds that jobs have to stop.
    """

    def __init__(self, demand: Any, jobs: int | None, grace_s: float) -> None:
        import ray

        self.ray = ray
        self.demand = demand
        self.jobs = jobs
        self.grace_s = grace_s
        self._running: dict[ray.ObjectRef[int], tuple[int, dict[str, float]]] = {}
        self._interrupted = False

    def has_room(self) -> bool:
        """See `Engine`."""
        return self.jobs is None or len(self._running) < self.jobs

    def adopt(self, order: Order) -> bool:
        """See `Engine`. Ray ends a sweep's tasks with the sweep."""
        return False

    def start(self, order: Order) -> bool:
        """See `Engine`. What Ray has no room for waits here, where it can still be taken back."""
        demand = self.demand(order.need)
        if self._running and not self._fits(demand):
            return False
        cpus, gpus = demand["CPU"], demand["GPU"]
        others = {name: value for name, value in demand.items() if name not in ("CPU", "GPU")}
        threads = str(max(1, int(cpus)))
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if not gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        task = self.ray.remote(run_in_worker).options(
            num_cpus=cpus, num_gpus=gpus, resources=others, max_retries=0, name=order.folder.name
        )
        reference = task.remote(order, environment, self.grace_s)
        self._running[reference] = (order.number, demand)
        return True

    def wait(self, timeout_s: float) -> list[Ended]:
        """See `Engine`."""
        if not self._running:
            time.sleep(timeout_s)
            return []
        references = list(self._running)
        over, _ = self.ray.wait(references, num_returns=1, timeout=timeout_s)
        if over:
            over, _ = self.ray.wait(references, num_returns=len(references), timeout=0)
        return [Ended(self._running.pop(reference)[0], self._code(reference)) for reference in over]

    def interrupt(self) -> None:
        """See `Engine`. A worker that is cancelled interrupts its job, and kills it after the grace."""
        self._interrupted = True
        self._cancel(force=False)

    def kill(self) -> None:
        """See `Engine`. A job ends with its worker."""
        self._cancel(force=True)

    def _cancel(self, *, force: bool) -> None:
        for reference in self._running:
            with suppress(self.ray.exceptions.RayError, ValueError):
                self.ray.cancel(reference, force=force)

    def _code(self, reference: "ray.ObjectRef[int]") -> int | None:
        exceptions = self.ray.exceptions
        try:
            return self.ray.get(reference)
        except (exceptions.RayError, KeyboardInterrupt) as error:
            if self._interrupted:
                return 128 + signal.SIGINT
            crashed = isinstance(error, exceptions.WorkerCrashedError | exceptions.OutOfMemoryError)
            return -signal.SIGKILL if crashed else None

    def _fits(self, demand: Mapping[str, float]) -> bool:
        total = self.ray.cluster_resources()
        taken = [other for _, other in self._running.values()]
        return all(
            sum(other.get(name, 0) for other in taken) + value <= total.get(name, 0) + 1e-9
            for name, value in demand.items()
        )


def run_in_worker(order: Order, environment: Mapping[str, str], grace_s: float) -> int:
    """Run a job in a process below a Ray worker, on the GPUs that Ray gave the worker.

    Returns:
        The job's exit code.
    """
    return run_below(Letter(order, environment, os.getpid()), grace_s)
