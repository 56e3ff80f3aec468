"""Measure the overhead of a sweep.

    python benchmarks/sweep_cost.py launchers --data DIR  20 one-epoch MLP jobs on MNIST, by three launchers
    python benchmarks/sweep_cost.py marginal              cost of an additional job of one batch, on one core
    python benchmarks/sweep_cost.py memory                memory growth of the sweep, disk space of a job
    python benchmarks/sweep_cost.py workers --data DIR    12 MLP jobs on MNIST, by one process and by two

`launchers` also needs hydra-joblib-launcher: uv run --with hydra-joblib-launcher python ….
Commands are interleaved; ratios compare consecutive commands.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "train.py"
TINY = [
    *("-m", "model=mlp", "trainer.accelerator=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=1"),
    *("trainer.limit_val_batches=1", "trainer.limit_test_batches=1"),
]
LAUNCHERS = {
    "ours": [],
    "basic": ["hydra/launcher=basic", "hydra/sweeper=basic"],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra/sweeper=basic"],
}


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("benchmark", choices=("launchers", "marginal", "memory", "workers"))
    parser.add_argument("--data", type=Path, help="folder with MNIST in torchvision's layout")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 50, 100, 400])
    arguments = parser.parse_args()
    if arguments.benchmark == "launchers":
        launchers(arguments.data.absolute(), arguments.pairs)
    elif arguments.benchmark == "marginal":
        marginal(arguments.sizes)
    elif arguments.benchmark == "workers":
        workers(arguments.data.absolute(), arguments.pairs)
    else:
        memory(max(arguments.sizes))


def launchers(data: Path, pairs: int) -> None:
    """Time the sweep with each launcher in turn, several times."""
    sweep = [
        *("-m", "model=mlp", "data=mnist", f"paths.data={data}", "optim=sgd", "trainer.accelerator=cpu"),
        *("trainer.max_epochs=1", "seed=range(20)"),
    ]
    seconds: dict[str, list[float]] = {name: [] for name in LAUNCHERS}
    for pair in range(pairs):
        for name, overrides in LAUNCHERS.items():
            seconds[name].append(timed([*sweep, *overrides]))
        row = "  ".join(f"{name} {times[-1]:6.1f} s" for name, times in seconds.items())
        print(f"round {pair}: {row}", flush=True)
    for name in ("basic", "joblib"):
        ratios = sorted(ours / other for ours, other in zip(seconds["ours"], seconds[name], strict=True))
        print(f"ours / {name}: median {median(ratios):.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f}")


def marginal(sizes: list[int]) -> None:
    """Time sweeps of more and more one-batch jobs on one core; print the cost of an additional job."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    seconds = []
    for size in sizes:
        seconds.append(timed([*TINY, f"seed=range({size})"]))
        print(f"{size:5} jobs: {seconds[-1]:7.1f} s", flush=True)
    each = 0.0
    for before, after in zip(range(len(sizes) - 1), range(1, len(sizes)), strict=True):
        each = (seconds[after] - seconds[before]) / (sizes[after] - sizes[before])
        print(f"from {sizes[before]} to {sizes[after]} jobs: {1000 * each:.0f} ms per additional job")
    own = compute()
    print(f"fit, validation and test of one batch in one process: {1000 * own:.0f} ms")
    print(f"overhead of an additional job: {1000 * (each - own):.0f} ms")


def compute(repeats: int = 20) -> float:
    """Return Lightning's time for a job's fit, validation and test, without building its parts [s]."""
    import torch
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from project.config.instantiate import build, build_task, resolve
    from project.config.resolvers import register_resolvers
    from project.runtime.process import silence_libraries
    from project.training.fit import fit_and_evaluate

    torch.set_num_threads(1)
    register_resolvers()
    silence_libraries()
    times = []
    with (
        tempfile.TemporaryDirectory() as folder,
        initialize_config_dir(str(SCRIPT.parent.parent / "conf"), version_base="1.3", job_name="train"),
    ):
        for number in range(repeats):
            composed = compose("train", TINY[1:], return_hydra_config=True)
            composed.hydra.runtime.output_dir = f"{folder}/{number}"
            Path(folder, str(number)).mkdir()
            HydraConfig.instance().set_config(composed)
            parts = {key: value for key, value in composed.items() if key != "hydra"}
            config = resolve(OmegaConf.create(parts))
            assert isinstance(config, dict)
            module = build_task(config)
            callbacks = build(config, "callbacks")
            loggers = list(build(config, "logger").values())
            trainer = build(config, "trainer", callbacks=list(callbacks.values()), logger=loggers)
            datamodule = build(config, "data")
            began = time.perf_counter()
            fit_and_evaluate(trainer, module, datamodule, callbacks, None)
            times.append(time.perf_counter() - began)
    return median(times)


def memory(jobs: int) -> None:
    """Print the memory of the sweep after the first and the last job, and the disk space of a job."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *TINY, f"seed=range({jobs})"], cwd=folder, stdout=subprocess.DEVNULL
        )
        sizes: dict[int, int] = {}
        while process.poll() is None:
            number = len(done(Path(folder)))
            sizes.setdefault(number, resident_kb(process.pid))
            time.sleep(0.05)
        (sweep,) = Path(folder).glob("outputs/sweep/*")
        space = disk_space(sweep)
    first, last = min(number for number in sizes if number), max(number for number in sizes if sizes[number])
    print(f"after job {first}: {sizes[first] / 1024:.0f} MB; after job {last}: {sizes[last] / 1024:.0f} MB")
    print(f"disk space of a job: {sum(space.values()) / jobs / 1e6:.2f} MB")
    for name, count in sorted(space.items(), key=lambda item: -item[1])[:8]:
        print(f"  {name}: {count / jobs / 1e3:.0f} kB")


def disk_space(sweep: Path) -> dict[str, int]:
    """Return the space of a sweep's files by the first part of their path in the run folder [bytes]."""
    space: dict[str, int] = {}
    seen = set()
    for file in sweep.rglob("*"):
        status = file.lstat()
        if file.is_file() and status.st_ino not in seen:  # hard links share their space
            seen.add(status.st_ino)
            parts = file.relative_to(sweep).parts
            name = parts[1].split(".")[0] if len(parts) > 1 else "files of the sweep"
            space[name] = space.get(name, 0) + 512 * status.st_blocks
    return space


def workers(data: Path, pairs: int) -> None:
    """Time a sweep of one job at a time alone, and with a second process that joins it, in turn."""
    sweep = [
        *("-m", "model=mlp", "data=mnist", f"paths.data={data}", "trainer.accelerator=cpu"),
        *("trainer.max_epochs=5", "~callbacks.early_stopping", "seed=range(12)", "hydra.launcher.jobs=1"),
    ]
    os.environ["OMP_NUM_THREADS"] = "1"
    ratios = []
    for _ in range(pairs):
        with tempfile.TemporaryDirectory() as folder:
            alone = timed([*sweep, f"hydra.sweep.dir={folder}/alone"])
            began = time.perf_counter()
            joined = f"{folder}/joined"
            first = subprocess.Popen(
                [sys.executable, str(SCRIPT), *sweep, f"hydra.sweep.dir={joined}"], stdout=subprocess.DEVNULL
            )
            while not Path(joined, "jobs.jsonl").exists() and first.poll() is None:
                time.sleep(0.05)
            timed([f"resume={joined}", "join=true", "hydra.launcher.jobs=1"])
            if first.wait():
                raise SystemExit(f"exit code {first.returncode} of the sweep that was joined")
            both = time.perf_counter() - began
        ratios.append(alone / both)
        print(f"one process {alone:.1f} s, two {both:.1f} s: {ratios[-1]:.2f} times as fast", flush=True)
    print(f"median {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def timed(arguments: list[str], folder: str | None = None) -> float:
    """Return the duration of a command [s]."""
    with tempfile.TemporaryDirectory() as own:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, str(SCRIPT), *arguments],
            cwd=folder or own,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return time.perf_counter() - began


def done(folder: Path) -> list[dict[str, float]]:
    """Return the recorded jobs that are done."""
    lines = [
        json.loads(line)
        for record in folder.glob("outputs/sweep/*/jobs.jsonl")
        for line in record.read_text().splitlines(keepends=True)
        if line.endswith("\n")
    ]
    return [line for line in lines if line["state"] == "done"]


def resident_kb(pid: int) -> int:
    """Return a process's resident memory [kB], 0 if the process has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS")), 0)


if __name__ == "__main__":
    main()
