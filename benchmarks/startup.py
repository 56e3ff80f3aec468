"""Measure start-up times: commands that do not train, and the time until the first training step.

python benchmarks/startup.py --rounds 7

Commands take turns on one core, so that other load affects all of them equally; ratios compare consecutive
commands. The baseline of a run is a script that imports the same libraries and takes one optimizer step.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
TRAIN = [sys.executable, str(ROOT / "scripts" / "train.py")]
PATH = os.pathsep.join([str(ROOT / "src"), str(ROOT / "benchmarks")])
COMPLETION = {"COMP_LINE": "python scripts/train.py model=", "COMP_POINT": "30"}

LIGHT = {
    "hydra, imported alone": [sys.executable, "-c", "import hydra"],
    "--help": [*TRAIN, "--help"],
    "--cfg job": [*TRAIN, "--cfg", "job"],
    "--info": [*TRAIN, "--info"],
    "completion of model=": [*TRAIN, "-sc", "query=bash"],
    "optim.lrr=1": [*TRAIN, "optim.lrr=1"],
    "model=cnnn": [*TRAIN, "model=cnnn"],
    "optim.lr=fast": [*TRAIN, "optim.lr=fast"],
}
"""Commands that do not need torch, by their names in the table."""

BASELINE = """
import torch, torchvision, torchmetrics, lightning, hydra, torch.utils.tensorboard, time, os
network = torch.nn.Linear(4, 4)
optimizer = torch.optim.Adam(network.parameters())
network(torch.zeros(1, 4)).sum().backward()
optimizer.step()
print(f"first step at {time.monotonic()}", flush=True)
os._exit(0)
"""
RUN = ["model=mlp", "trainer.accelerator=cpu", "trainer.max_epochs=1"]
BASELINE_NAME, RUN_NAME = "imports and one step", "a run, until its first step"
HEAVY = {
    BASELINE_NAME: [sys.executable, "-c", BASELINE],
    RUN_NAME: [*TRAIN, *RUN, "+callbacks.first_step._target_=first_step.FirstStep"],
    "a complete run: one epoch of the digits": [*TRAIN, *RUN],
}
"""Commands that train; the first two print the time of their first step."""


def seconds(command: list[str], folder: str) -> float:
    """Return the time until a command's first step if it prints one, otherwise until its end [s]."""
    environment = os.environ | COMPLETION | {"PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    ended = time.monotonic()
    if done.returncode not in (0, 2):
        raise SystemExit(done.stdout + done.stderr)
    for line in done.stdout.splitlines():
        if line.startswith("first step at "):
            return float(line.rpartition(" ")[2]) - began
    return ended - began


def shown(values: list[float]) -> str:
    """Format the median and range of seconds or ratios."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="number of runs of each command")
    parser.add_argument("--light", action="store_true", help="only the commands that do not need torch")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    commands = LIGHT if args.light else LIGHT | HEAVY
    times: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds + 1):
            for name, command in commands.items():
                took = seconds(command, folder)
                if number > 0:  # the first round fills caches
                    times[name].append(took)
    print("| command | seconds |\n| --- | --- |")
    for name, values in times.items():
        print(f"| {name} | {shown(values)} |")
    if not args.light:
        ratios = [run / baseline for run, baseline in zip(times[RUN_NAME], times[BASELINE_NAME], strict=True)]
        print(f"| {RUN_NAME}, divided by the imports | **{shown(ratios)}** |")


if __name__ == "__main__":
    main()
