"""Tests of sweeps on submitit (with a simulated SLURM) and Ray, on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fake_slurm
import grpc
import pytest
from conftest import ROOT, read_table
from omegaconf import OmegaConf

from project.errors import InputError
from project.runs.sweep_jobs import Job, Ledger
from project.runtime.bounds import check_arguments
from project.sweeps.device_slots import DeviceRequest
from project.sweeps.engine import EngineClosedError, JobExit
from project.sweeps.job_process import JobSpec, TaskReference
from project.sweeps.job_scheduler import JobList
from project.sweeps.launchers import ray as ray_launcher
from project.sweeps.launchers import slurm_queue
from project.sweeps.launchers.ray import RayLauncher, refuse_excess, refuse_unanswered
from project.sweeps.launchers.slurm import SlurmLauncher

TINY = ["model=mlp", "data=synthetic", "data.train_size=200", "data.test_size=101", "trainer.accelerator=cpu"]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.poll_s=0.2"]
SERVE_RAY = """
import sys
from project.sweeps.launchers.ray import RayLauncher
RayLauncher().connect()
import ray
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
FOREVER = ["trainer.max_epochs=100000", "~callbacks.early_stopping"]


@contextmanager
def sweep(folder: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run a sweep in a session of its own, and kill all of its processes afterward."""
    path = os.pathsep.join([str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "train.py"), "-m", *arguments],
        cwd=folder,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "PROJECT_TEST": str(folder), "PYTHONPATH": path}
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for pid in [process.pid, *processes_of(folder)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def processes_of(folder: Path) -> list[int]:
    """Return the processes that a sweep has started, found by an inherited variable."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"PROJECT_TEST={folder}\0".encode() in file.read_bytes():
                found.append(int(file.parent.name))
    return found


def wait_for(what: Callable[[], Any], running: subprocess.Popen[str] | None = None) -> Any:
    deadline = time.monotonic() + 120
    while not (found := what()):
        assert time.monotonic() < deadline
        if running is not None and running.poll() is not None:
            pytest.fail(running.communicate()[0])
        time.sleep(0.1)
    return found


def only_sweep(folder: Path) -> Path:
    (record,) = folder.glob("outputs/sweep/*/sweep.json")
    return record.parent


def jobs_of(folder: Path) -> list[Job]:
    return list(Ledger(only_sweep(folder) / "jobs.jsonl").read().values())


def status_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "launcher"),
    [("submitit", [*SLURM, "hydra.launcher.jobs=2"]), ("ray", ["hydra/launcher=ray"])],
)
def test_each_job_runs_once_with_one_or_two_ranks(tmp_path: Path, package: str, launcher: list[str]) -> None:
    pytest.importorskip(package)
    (tmp_path / "points.txt").write_text(
        "optim.lr=0.1\noptim.lr=0.01\noptim.lr=0.001 trainer=ddp trainer.accelerator=cpu trainer.devices=2\n"
        "optim.lr=0.0001 +optim.eps=-1\n"
    )
    points = ["hydra.sweeper.file=points.txt", "trainer.max_epochs=1"]
    slurm = fake_slurm.install(tmp_path / "slurm")
    with sweep(tmp_path, *TINY, *points, *launcher, **slurm) as process:
        shown, _ = process.communicate(timeout=240)
        wait_for(lambda: not processes_of(tmp_path))
    assert process.returncode == 1, shown
    jobs = jobs_of(tmp_path)
    assert [(job.state, job.attempts) for job in jobs] == [("done", 1)] * 3 + [("failed", 1)], shown
    runs = [only_sweep(tmp_path) / job.name for job in jobs]
    assert [status_of(run)["state"] for run in runs] == [job.state for job in jobs]
    assert [status_of(run)["ranks"] for run in runs[:3]] == [1, 1, 2]
    assert [status_of(run)["value"] for run in runs] == [job.value for job in jobs]
    assert status_of(runs[2])["metrics"]["test/images"] == 101
    assert "Invalid epsilon value" in (jobs[3].error or "")
    assert all((run / "train.log").stat().st_size for run in runs)
    assert "1 of 4 jobs failed" in shown
    assert not any(word in shown for word in ("submitit", "Ray instance", "(pid="))


@pytest.mark.slow
def test_job_at_its_time_limit_is_requeued_and_resumed(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    slurm = fake_slurm.install(tmp_path / "slurm")
    with sweep(tmp_path, *TINY, *FOREVER, *SLURM, "optim.lr=0.001", **slurm) as process:
        wait_for(lambda: list(tmp_path.glob("outputs/sweep/*/*/checkpoints/last.ckpt")), process)
        (run,) = (file.parent for file in only_sweep(tmp_path).glob("*/status.json"))
        wait_for(lambda: noted(run))
        os.kill(submitit_process(tmp_path), signal.SIGUSR2)  # as SLURM does near the time limit
        wait_for(lambda: noted(run)["starts"] == 2)
        before = steps(run)[-1]
        wait_for(lambda: steps(run)[-1] > before)
        process.send_signal(signal.SIGINT)
        shown, _ = process.communicate(timeout=60)
        assert wait_for(lambda: not processes_of(tmp_path))
    assert process.returncode == 130, shown
    assert steps(run) == sorted(set(steps(run))), "no epoch is repeated"
    assert [job.state for job in jobs_of(tmp_path)] == ["interrupted"]


@pytest.mark.slow
@pytest.mark.parametrize(("package", "launcher"), [("submitit", "slurm"), ("ray", "ray")])
def test_stopped_sweep_leaves_no_process(tmp_path: Path, package: str, launcher: str) -> None:
    pytest.importorskip(package)
    slurm = fake_slurm.install(tmp_path / "slurm")
    ranks = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    point = [f"hydra/launcher={launcher}", "optim.lr=0.001"]
    with sweep(tmp_path, *TINY, *FOREVER, *ranks, *point, **slurm) as process:
        wait_for(lambda: list(tmp_path.glob("outputs/sweep/*/*/checkpoints/last.ckpt")), process)
        process.send_signal(signal.SIGINT)
        shown, _ = process.communicate(timeout=60)
        wait_for(lambda: not processes_of(tmp_path))
    assert process.returncode == 130, shown
    assert "Traceback" not in shown
    assert [job.state for job in jobs_of(tmp_path)] == ["interrupted"]


def noted(run: Path) -> dict[str, Any]:
    """Return the facts that a job recorded."""
    token = json.loads((run.parent / ".submitit" / f"{run.name}.json").read_text())["token"]
    file = run.parent / ".submitit" / f"{token}.json"
    return json.loads(file.read_text()) if file.exists() else {}


def submitit_process(folder: Path) -> int:
    """Return the process in which submitit calls the job."""
    for pid in processes_of(folder):
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if "submitit.core._submit" in words and not any("fake_slurm" in word for word in words):
            return pid
    raise AssertionError("no process of submitit")


def steps(run: Path) -> list[int]:
    return [int(row["step"]) for row in read_table(run / "metrics.csv") if row["val/acc"]]


@pytest.mark.slow
def test_killed_sweep_reattaches_to_jobs_on_several_nodes(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    slurm = fake_slurm.install(tmp_path / "slurm")
    nodes = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=2"]
    launcher = ["hydra/launcher=slurm", "hydra.launcher.poll_s=0.2"]
    waiting = ["+callbacks.waiting._target_=waiting_callback.Waiting", "trainer.max_epochs=5"]
    with sweep(tmp_path, *TINY, *nodes, *launcher, "optim.lr=0.001", *waiting, **slurm) as first:
        wait_for(lambda: list(tmp_path.glob("outputs/sweep/*/*/checkpoints/last.ckpt")), first)
        first.kill()
        first.wait()
        folder = only_sweep(tmp_path)
        with sweep(tmp_path, f"resume={folder}", **slurm) as second:
            wait_for(lambda: (folder / "sweep.log").read_text().count(" started ") == 2, second)
            (tmp_path / "release").touch()
            shown, _ = second.communicate(timeout=120)
        assert second.returncode == 0, shown
        wait_for(lambda: not processes_of(tmp_path))
    assert "started" in shown, "the job had ended before"
    (job,) = jobs_of(tmp_path)
    run = only_sweep(tmp_path) / job.name
    assert job.state == status_of(run)["state"] == "done"
    assert status_of(run)["ranks"] == 2
    assert status_of(run)["metrics"]["test/images"] == 101
    assert noted(run)["starts"] == 1
    assert [file.name for file in (tmp_path / "slurm" / "jobs").glob("*[0-9]")] == ["4321"]
    assert steps(run) == sorted(set(steps(run)))


def trainer(**settings: Any) -> Any:
    return OmegaConf.create({"accelerator": "gpu", "devices": 1, "num_nodes": 1} | settings)


def test_slurm_starts_all_ranks_only_on_several_nodes() -> None:
    pytest.importorskip("submitit")
    launcher = SlurmLauncher(partition="long", timeout_min=90, cpus_per_task=4, mem_gb=1.5, grace_s=60)
    resources = launcher.sbatch_options(trainer(devices=2, num_nodes=3), "sweep_0")
    assert (resources["nodes"], resources["ntasks_per_node"], resources["gpus_per_node"]) == (3, 2, 2)
    assert resources["srun_args"] == ["--kill-on-bad-exit=1", "--cpus-per-task=4"]
    assert (resources["partition"], resources["time"], resources["mem"]) == ("long", 90, "1536M")
    assert resources["signal_delay_s"] == 90
    assert "account" not in resources
    resources = launcher.sbatch_options(trainer(devices=[0, 1]), "sweep_0")
    assert (resources["nodes"], resources["ntasks_per_node"], resources["gpus_per_node"]) == (1, 1, 2)
    assert "gpus_per_node" not in launcher.sbatch_options(trainer(accelerator="cpu", devices=2), "sweep_0")
    assert launcher.request_devices(
        OmegaConf.create({"trainer": trainer(devices=2, num_nodes=3)})
    ) == DeviceRequest(6, 6)
    whole = SlurmLauncher(gpus_per_node=8).sbatch_options(
        trainer(devices="auto", accelerator="auto"), "sweep_0"
    )
    assert (whole["ntasks_per_node"], whole["gpus_per_node"]) == (1, 8)


def test_sbatch_script_contains_all_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", fake_slurm.install(tmp_path / "slurm")["PATH"])
    executor = submitit.SlurmExecutor(tmp_path)
    launcher = SlurmLauncher(account="lab", additional={"constraint": "a100"}, setup=["module load cuda"])
    executor.update_parameters(**launcher.sbatch_options(trainer(devices=2, num_nodes=2), "sweep_0"))
    script = executor._make_submission_file_text("run", "0")
    for line in ("account=lab", "constraint=a100", "nodes=2", "ntasks-per-node=2", "signal=USR2@60"):
        assert f"#SBATCH --{line}\n" in script
    assert "\nmodule load cuda\n" in script
    assert "--kill-on-bad-exit=1" in script


@pytest.mark.parametrize(
    ("launcher", "settings", "line"),
    [
        (
            {},
            {"accelerator": "auto"},
            "trainer.accelerator=auto: the devices of the cluster's nodes are unknown",
        ),
        ({}, {"devices": "auto"}, "trainer.devices=auto: the number of GPUs of a node is unknown"),
        ({"gpus_per_node": 1}, {"devices": 2}, "hydra.launcher.gpus_per_node=1: a job trains on trainer.dev"),
        ({"jobs": 0}, {}, "hydra.launcher.jobs=0: must be at least 1"),
        ({"timeout_min": 0}, {}, "hydra.launcher.timeout_min=0: must be above 0"),
    ],
)
def test_slurm_refuses_unknown_devices_and_wrong_options(
    launcher: dict[str, Any], settings: dict[str, Any], line: str
) -> None:
    def ask() -> None:
        options = check_arguments("hydra.launcher", SlurmLauncher, launcher)
        SlurmLauncher(**options).sbatch_options(trainer(**settings), "sweep_0")

    with pytest.raises(InputError, match=line.replace(".", r"\.")):
        ask()


def test_job_arrays_need_all_jobs_at_once() -> None:
    launcher: Any = SlurmLauncher(array=True)
    with pytest.raises(InputError, match=r"hydra\.launcher\.array=true: a search starts its jobs one by one"):
        launcher.run(None, object(), None, ())
    launcher.config = OmegaConf.create({"hydra": {"sweeper": {"timeout_s": 60}}})
    with pytest.raises(InputError, match=r"hydra\.sweeper\.timeout_s=60: has no effect, as an array submits"):
        launcher.run(None, JobList([]), None, ())


class ArraySubmissions:
    """Engine of job arrays whose submissions are recorded, each with the next of the given outcomes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *outcomes: bool | str | Exception) -> None:
        pytest.importorskip("submitit")
        self.engine: Any = SlurmLauncher(array=True).make_engine(4, ())
        self.outcomes = list(outcomes)
        self.arrays: list[list[int]] = []
        monkeypatch.setattr(slurm_queue, "run", lambda command: ("", "MaxArraySize = 1001"))
        monkeypatch.setattr(self.engine, "_submit", self._submit)

    def start(self, *devices: int) -> None:
        for number, each in enumerate(devices):
            config = OmegaConf.create({"trainer": trainer(devices=each)})
            task, folder = TaskReference("train.py", "main"), Path("sweep", str(number))
            assert self.engine.start(JobSpec(number, [], config, folder, task, DeviceRequest(each, each)))

    def _submit(self, specs: list[JobSpec], limit: float) -> bool:
        self.arrays.append([spec.number for spec in specs])
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        if isinstance(outcome, str):
            self.engine.refusals.add(outcome, has_jobs=False)
            self.engine.refusals.retry_soon()
            return False
        self.engine._has_submitted = True
        return True


def test_arrays_have_equal_resources_and_shrink_at_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = "Unable to contact slurm controller", "Job violates accounting/QOS policy (job submit limit)"
    submissions = ArraySubmissions(monkeypatch, *refusals, True, True, True, True)
    submissions.start(1, 2, 1, 1)
    for _ in range(7):
        assert submissions.engine.wait(0) == []
    assert submissions.arrays == [[0, 2, 3], [0, 2, 3], [0], [1], [2], [3]]


def test_refused_arrays_end_their_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = InputError("sbatch refuses job 1")
    first = ArraySubmissions(monkeypatch, wrong)
    first.start(1, 1)
    with pytest.raises(InputError, match="sbatch refuses job 1"):
        first.engine.wait(0)
    later = ArraySubmissions(monkeypatch, True, wrong)
    later.start(1, 2, 2)
    assert later.engine.wait(0) == []
    assert later.engine.wait(0) == [JobExit(number, None, error=str(wrong)) for number in (1, 2)]
    closed = ArraySubmissions(monkeypatch, EngineClosedError("sbatch still refuses jobs"))
    closed.start(1, 2)
    assert closed.engine.wait(0) == [JobExit(number, 130) for number in (0, 1)]
    with pytest.raises(EngineClosedError, match="sbatch still refuses jobs"):
        closed.start(1)
    stopped = ArraySubmissions(monkeypatch)
    stopped.start(1, 1)
    stopped.engine.interrupt()
    assert stopped.engine.wait(0) == [JobExit(number, 130) for number in (0, 1)]


def test_ray_resources_follow_ranks_and_gpus() -> None:
    def resources(launcher: RayLauncher, **settings: Any) -> dict[str, float]:
        return launcher.ray_resources(
            launcher.request_devices(OmegaConf.create({"trainer": trainer(**settings)}))
        )

    anywhere = RayLauncher(address="auto", resources={"big_disk": 1})
    assert resources(anywhere, devices=4) == {"CPU": 4, "GPU": 4, "big_disk": 1}
    assert resources(anywhere, accelerator="cpu", devices=3) == {"CPU": 3, "GPU": 0, "big_disk": 1}
    assert resources(RayLauncher(num_gpus=0.25, num_cpus=0.5)) == {"CPU": 0.5, "GPU": 0.25}
    with pytest.raises(InputError, match="num_nodes=2: a job is one Ray task"):
        resources(anywhere, num_nodes=2)
    with pytest.raises(InputError, match=r"num_gpus=2: a job trains on trainer\.devices=4"):
        resources(RayLauncher(num_gpus=2), devices=4)


def test_ray_job_larger_than_every_node_is_refused() -> None:
    nodes: list[dict[str, float]] = [{"CPU": 64, "memory": 1e9}, {"CPU": 8, "GPU": 2}, {"CPU": 4, "GPU": 1}]
    for fitting in ({"CPU": 64, "GPU": 0}, {"CPU": 8, "GPU": 2}, {"CPU": 0.5, "GPU": 0.25}):
        refuse_excess(fitting, nodes)
    with pytest.raises(
        InputError, match="needs 16 CPU, 2 GPU on one node, but the largest node has 8 CPU, 2 GPU;"
    ):
        refuse_excess({"CPU": 16, "GPU": 2}, nodes)
    with pytest.raises(
        InputError, match="needs 1 CPU, 1 disk on one node, but the largest node has 8 CPU, 0 disk"
    ):
        refuse_excess({"CPU": 1, "GPU": 0, "disk": 1}, nodes)


def test_token_of_a_ray_cluster_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        if ("authorization", "Bearer right") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Invalid or missing authentication token")
        return b""

    class Handlers(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            is_known = details.method in (
                "/ray.rpc.RayletDriver/ClusterInfo",
                "/ray.rpc.NodeInfoGcsService/GetClusterId",
            )
            return grpc.unary_unary_rpc_method_handler(answer) if is_known else None

    (tmp_path / "token").write_text("right\n")
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    server = grpc.server(ThreadPoolExecutor(1), handlers=[Handlers()])
    place = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        for address in (place, f"ray://{place}"):
            with pytest.raises(
                InputError, match="requires a token, which is missing; set RAY_AUTH_MODE=token"
            ):
                refuse_unanswered(address)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
        refuse_unanswered(place)
        refuse_unanswered(f"ray://{place}")
        monkeypatch.setenv("RAY_AUTH_TOKEN", "other")
        with pytest.raises(InputError, match="requires a token, which is wrong"):
            refuse_unanswered(place)
    finally:
        server.stop(None).wait()


def test_address_without_ray_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_launcher, "ANSWER_LIMIT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(
            InputError, match=f"address=ray://{place}: no Ray answers there .no answer within 1 s"
        ):
            refuse_unanswered(f"ray://{place}")
    monkeypatch.setattr(ray_launcher, "ANSWER_LIMIT_S", 60.0)
    with socket.create_server(("127.0.0.1", 0)) as closed:  # not the one whose connection gRPC may keep
        place = f"127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(InputError, match=f"address={place}: no Ray answers there .*Connection refused"):
        refuse_unanswered(place)
    with pytest.raises(InputError, match="Port could not be cast"):
        refuse_unanswered("host:abc")
    for left_to_ray in ("auto", "host-without-port"):
        refuse_unanswered(left_to_ray)


@pytest.mark.slow
def test_cluster_refuses_jobs_without_token_or_room(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    owner, guest = tmp_path / "owner", tmp_path / "guest"
    for home in (owner, guest):
        home.mkdir()
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # otherwise Ray looks at the machine's address
    with_token = {"HOME": str(owner), "RAY_AUTH_MODE": "token"}
    cluster = subprocess.Popen(
        [sys.executable, "-c", SERVE_RAY],
        env=os.environ | loopback | with_token,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with cluster:
        assert cluster.stdout is not None
        place = cluster.stdout.readline().strip()
        options = ["hydra/launcher=ray", f"hydra.launcher.address={place}", "hydra.launcher.num_cpus=1000"]
        for variables, line in (
            ({"HOME": str(guest)}, f"error: hydra.launcher.address={place}: the cluster requires a token"),
            (
                with_token,
                "error: hydra/launcher=ray: a job needs 1000 CPU on one node, but the largest node has ",
            ),
        ):
            with sweep(tmp_path, *TINY, *options, "optim.lr=0.1,0.2", **loopback, **variables) as process:
                shown, _ = process.communicate(timeout=240)
            assert process.returncode == 2, shown
            assert line in shown


@pytest.mark.parametrize(
    ("package", "module", "use"),
    [
        ("submitit", "project.sweeps.launchers.slurm_engine", lambda: SlurmLauncher().make_engine(1, ())),
        ("ray", "ray", lambda: RayLauncher().connect()),
    ],
)
def test_missing_package_is_reported_with_its_install_command(
    monkeypatch: pytest.MonkeyPatch, package: str, module: str, use: Callable[[], object]
) -> None:
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"needs {package}; run uv sync --extra"):
        use()
