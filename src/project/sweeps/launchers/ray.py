"""The Ray launcher, which runs each job of a sweep as a Ray task.

Unlike Hydra's Ray plugin, this launcher supports several devices per job (Lightning would start the sweep
again in each rank), and reports each job when it ends.
"""

import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from omegaconf import DictConfig

from project.errors import InputError, one_line
from project.runs.sweep_folder import SweepFolder
from project.runtime.bounds import Range
from project.runtime.devices import available_cpus, visible_gpus
from project.runtime.extras import install_command
from project.sweeps.device_slots import DeviceRequest, request_devices
from project.sweeps.engine import Engine, JobExit, JobProcess
from project.sweeps.job_process import JobMessage, JobSpec, thread_variables
from project.sweeps.job_scheduler import JobSource
from project.sweeps.launchers.base import ScheduledLauncher
from project.sweeps.live_view import LiveView

if TYPE_CHECKING:
    import ray

STORE_BYTES = 100 * 2**20
"""Object store of a local Ray instance [bytes]: jobs exchange only configurations and exit codes."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # otherwise each worker below `uv run` creates an environment
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
"""Environment variables that Ray reads when it is imported."""

LOCAL_ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Makes a local Ray instance listen on 127.0.0.1 only, as on Windows, instead of on all addresses."""

CLIENT_PORT = 10001
"""Port of `ray://HOST`."""
ANSWER_LIMIT_S = 10.0
"""Time for a cluster to answer [s]."""


class RayLauncher(ScheduledLauncher):
    """Run each job of the sweep as a Ray task.

    Args:
        address: None: start a local Ray instance for this sweep; `auto`: connect to the instance on this
            machine; `ray://HOST:PORT` or `HOST:PORT`: connect to a cluster, which must share the file system
            of the sweep's folder.
        num_cpus: CPUs per job (`auto`: one per process).
        num_gpus: GPUs per job; below 1, several jobs share a GPU (`auto`: `trainer.devices`).
        jobs: maximum number of simultaneous jobs (None: limited by Ray's resources alone).
        resources: custom Ray resources per job, by name.
        autoscaling: let a job wait for a node that is larger than all present ones, instead of failing it.
        fail_fast: stop the sweep when a job fails.
        grace_s: time that jobs have to stop when the sweep is stopped [s].
    """

    def __init__(
        self,
        address: str | None = None,
        num_cpus: Annotated[float, Range(0)] | Literal["auto"] = "auto",
        num_gpus: Annotated[float, Range(0)] | Literal["auto"] = "auto",
        jobs: Annotated[int, Range(1)] | None = None,
        resources: Mapping[str, Annotated[float, Range(0)]] | None = None,
        autoscaling: bool = False,
        fail_fast: bool = False,
        grace_s: Annotated[float, Range(0)] = 30.0,
    ) -> None:
        super().__init__(fail_fast, grace_s)
        if num_gpus != "auto" and num_gpus > 1 and num_gpus != int(num_gpus):
            raise InputError(
                f"hydra.launcher.num_gpus={num_gpus}: above 1, Ray needs a whole number; round it"
            )
        self.address = address
        self.num_cpus = num_cpus
        self.num_gpus = num_gpus
        self.jobs = jobs
        self.autoscaling = autoscaling
        self.resources = {str(name): float(value) for name, value in (resources or {}).items()}

    def run(self, folder: SweepFolder, source: JobSource, view: LiveView, targets: Iterable[str]) -> int:
        self.connect()
        import ray

        try:
            return super().run(folder, source, view, targets)
        finally:
            ray.shutdown()  # stops a local instance; a cluster keeps running

    def connect(self) -> None:
        """Start a local Ray instance, or connect to a running one."""
        variables = ENVIRONMENT | (LOCAL_ENVIRONMENT if self.address is None else {})
        os.environ |= {name: os.environ.get(name, value) for name, value in variables.items()}
        if self.address is not None:
            refuse_unanswered(self.address)
        try:
            import ray
        except ModuleNotFoundError as error:
            raise InputError(f"hydra/launcher=ray: needs ray; run {install_command('ray')}") from error
        options: dict[str, Any] = {"address": self.address, "log_to_driver": False, "logging_level": "ERROR"}
        if self.address is None:
            options |= {
                "address": "local",
                "num_cpus": available_cpus(),
                "include_dashboard": False,
                "object_store_memory": STORE_BYTES,
                "_node_ip_address": "127.0.0.1",
            }
        try:
            ray.init(**options)
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            if self.address is None:
                raise
            raise connection_error(self.address, one_line(error)) from error

    def make_engine(self, num_jobs: int, targets: Iterable[str]) -> Engine:
        return RayEngine(self)

    def request_devices(self, config: DictConfig) -> DeviceRequest:
        trainer: dict[str, Any] = dict(config.trainer)
        if trainer["num_nodes"] > 1:
            raise InputError(
                f"trainer.num_nodes={trainer['num_nodes']}: a job is one Ray task on one node; set 1, or use "
                "hydra/launcher=slurm"
            )
        if trainer["accelerator"] == "auto" and self.num_gpus == "auto":
            trainer["accelerator"] = "gpu" if visible_gpus() else "cpu"  # as on the cluster
        return request_devices(trainer, None, self.num_gpus, "hydra.launcher.num_gpus")

    def ray_resources(self, request: DeviceRequest) -> dict[str, float]:
        """Return a job's resources by Ray's names."""
        cpus = float(request.ranks if self.num_cpus == "auto" else self.num_cpus)
        if self.address is None and self.num_cpus == "auto":
            cpus = min(cpus, available_cpus())  # a job too large for this machine runs alone
        return {"CPU": cpus, "GPU": request.gpus, **self.resources}


class RayEngine(Engine):
    """Run jobs as Ray tasks."""

    def __init__(self, launcher: RayLauncher) -> None:
        import ray

        self.ray = ray
        self.launcher = launcher
        self._running: dict[ray.ObjectRef[int], tuple[int, dict[str, float]]] = {}
        self._is_interrupted = False

    def has_capacity(self) -> bool:
        return self.launcher.jobs is None or len(self._running) < self.launcher.jobs

    def start(self, spec: JobSpec) -> bool:
        resources = self.launcher.ray_resources(spec.request)
        if not self.launcher.autoscaling:
            refuse_excess(resources, [node["Resources"] for node in self.ray.nodes() if node["Alive"]])
        if self._running and not self._are_free(
            resources
        ):  # queued here instead of by Ray, so that a stopped sweep can drop it
            return False
        others = {name: value for name, value in resources.items() if name not in ("CPU", "GPU")}
        environment = thread_variables(max(1, int(resources["CPU"])))
        if not resources["GPU"]:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        task = self.ray.remote(run_in_worker).options(
            num_cpus=resources["CPU"],
            num_gpus=resources["GPU"],
            resources=others,
            max_retries=0,
            name=spec.folder.name,
        )
        reference = task.remote(spec, environment, self.launcher.grace_s)
        self._running[reference] = (spec.number, resources)
        return True

    def wait(self, timeout_s: float) -> list[JobExit]:
        if not self._running:
            time.sleep(timeout_s)
            return []
        references = list(self._running)
        ended, _ = self.ray.wait(references, num_returns=1, timeout=timeout_s)
        if ended:
            ended, _ = self.ray.wait(references, num_returns=len(references), timeout=0)
        return [JobExit(self._running.pop(reference)[0], self._exit_code(reference)) for reference in ended]

    def interrupt(self) -> None:
        """Cancel the workers, each of which interrupts its job and kills it after the grace period."""
        self._is_interrupted = True
        self._cancel(force=False)

    def kill(self) -> None:
        self._cancel(force=True)  # a job dies with its worker

    def _cancel(self, *, force: bool) -> None:
        for reference in self._running:
            with suppress(self.ray.exceptions.RayError, ValueError):
                self.ray.cancel(reference, force=force)

    def _exit_code(self, reference: "ray.ObjectRef[int]") -> int | None:
        exceptions = self.ray.exceptions
        try:
            return self.ray.get(reference)
        except (exceptions.RayError, KeyboardInterrupt) as error:
            if self._is_interrupted:
                return 128 + signal.SIGINT
            has_crashed = isinstance(error, exceptions.WorkerCrashedError | exceptions.OutOfMemoryError)
            return -signal.SIGKILL if has_crashed else None

    def _are_free(self, resources: Mapping[str, float]) -> bool:
        total = self.ray.cluster_resources()
        taken = [other for _, other in self._running.values()]
        return all(
            sum(other.get(name, 0) for other in taken) + value <= total.get(name, 0) + 1e-9
            for name, value in resources.items()
        )


def refuse_unanswered(address: str) -> None:
    """Refuse an address where no Ray answers, or where Ray refuses the token: Ray itself tries for minutes.

    Other forms of address than `ray://HOST:PORT` and `HOST:PORT` are left to Ray.

    Raises:
        InputError: no answer within `ANSWER_LIMIT_S`, or no valid token.
    """
    import grpc

    url = urlsplit(address if "://" in address else f"//{address}")
    is_client = url.scheme == "ray"
    try:
        port = url.port or (CLIENT_PORT if is_client else None)
    except ValueError as error:
        raise connection_error(address, str(error)) from error
    if port is None or os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    method = "RayletDriver/ClusterInfo" if is_client else "NodeInfoGcsService/GetClusterId"
    headers = [("authorization", f"Bearer {token}")] if (token := find_token()) else []
    options = [("grpc.enable_http_proxy", 0)]  # as Ray itself
    try:
        with grpc.insecure_channel(f"{url.hostname}:{port}", options) as channel:
            channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=ANSWER_LIMIT_S, metadata=headers)
    except grpc.RpcError as error:
        status, details = error.code(), error.details()
        if status is grpc.StatusCode.UNAUTHENTICATED:
            raise InputError(
                f"hydra.launcher.address={address}: the cluster requires a token, which is "
                f"{'wrong' if token else 'missing'}; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
                "RAY_AUTH_TOKEN_PATH (`ray get-auth-token` on the head node prints the token)"
            ) from error
        if status is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise connection_error(address, f"no answer within {ANSWER_LIMIT_S:.0f} s") from error
        if status is grpc.StatusCode.UNAVAILABLE:
            raise connection_error(address, details) from error
        # Any other status comes from a server, whose answer to Ray's own calls may differ.


def connection_error(address: str, reason: str) -> InputError:
    """Return the error that no Ray answers at an address."""
    return InputError(
        f"hydra.launcher.address={address}: no Ray answers there ({reason}); start one with `ray start "
        "--head`, or leave the address out"
    )


def find_token() -> str:
    """Return the token that Ray would send to a cluster; empty if none."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return ""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return file.read_text().strip() if file.is_file() else ""


def refuse_excess(resources: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> None:
    """Refuse a job that no node of the cluster can run.

    Args:
        resources: resources of the job by Ray's names.
        nodes: total resources of each node.

    Raises:
        InputError: each node lacks resources.
    """

    def satisfied(node: Mapping[str, float]) -> list[bool]:
        return [value <= node.get(name, 0) + 1e-9 for name, value in resources.items()]

    if any(all(satisfied(node)) for node in nodes):
        return
    largest = max(nodes, key=lambda node: (sum(satisfied(node)), node.get("GPU", 0), node.get("CPU", 0)))
    needed = ", ".join(f"{value:g} {name}" for name, value in resources.items() if value)
    offered = ", ".join(f"{largest.get(name, 0):g} {name}" for name, value in resources.items() if value)
    raise InputError(
        f"hydra/launcher=ray: a job needs {needed} on one node, but the largest node has {offered}; lower "
        "trainer.devices or hydra.launcher.num_cpus, num_gpus, resources, or set "
        "hydra.launcher.autoscaling=true if the cluster adds nodes"
    )


def run_in_worker(spec: JobSpec, environment: Mapping[str, str], grace_s: float) -> int:
    """Run a job in a child process of a Ray worker, on the worker's GPUs.

    A worker has signal handlers and threads of its own, so ranks are forked from a new process.
    """
    process = JobProcess.start_fresh(JobMessage(spec, environment, os.getpid()))
    try:
        code = process.wait()
        assert code is not None
        return code
    finally:
        process.stop(grace_s)
