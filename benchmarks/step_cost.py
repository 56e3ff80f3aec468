"""Measure the overhead of a training step: our runs compared with a bare loop on tensors in memory.

    python benchmarks/step_cost.py --data DIR                     all networks, five pairs of epochs each
    python benchmarks/step_cost.py --data DIR --networks mlp --chunks 1 4 16 64
    python benchmarks/step_cost.py --data DIR --devices gpu       also against a step captured as a CUDA graph

Runs `scripts/train.py experiment=…` with all features (bar, metrics, checkpoints, TensorBoard, CSV). In the
same process, a bare loop trains for an epoch before and after each of the run's epochs: randperm, index,
zero_grad, forward, cross-entropy, backward, step. Network, memory format, precision and optimizer are equal.
Our epochs are timed from the start of one epoch to the start of the next, without the bare loop, and compared
with the mean of the bare epochs before and after. The first epoch is a warm-up. With `--batches`, a part of
an epoch includes the checkpoint and shuffling of a full epoch, which makes our runs look slightly slower.
`of the least` is the ratio of our fastest epoch to the fastest bare epoch, an estimate for an idle machine.
"""

import argparse
import json
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from cifar10_arrays import FOLDER, decoded
from measurement import TRAIN, machine, pin, ratios, run, spread, table


class Case(NamedTuple):
    """Preset of a network."""

    preset: str
    batches: int | None = None  # limit per epoch; None: all


CASES = {
    "mlp": Case("mnist_mlp"),
    "linear": Case("mnist_linear"),
    "convnet": Case("mnist_convnet"),
    "lenet": Case("cifar10_lenet", 2500),
    "cnn": Case("mnist_cnn", 200),
}
KEYS = {
    "shape": "data.input_shape",
    "batch_size": "data.batch_size",
    "mean": "data.mean",
    "std": "data.std",
    "channels_last": "channels_last",
    "precision": "trainer.precision",
}
"""Configuration keys of the bare loop's arguments."""


def main() -> None:
    """Measure the chosen networks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST/raw and cifar10_jpeg")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "project-benchmarks")
    parser.add_argument("--networks", nargs="+", choices=tuple(CASES), help="default: all; on a GPU mlp, cnn")
    parser.add_argument("--devices", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--pairs", type=int, default=5, help="number of measured epochs")
    parser.add_argument("--batches", type=int, help="limit of each epoch; 0: all")
    parser.add_argument("--chunks", type=int, nargs="+", help="values of trainer.batches_per_hook to compare")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--override", nargs="*", default=[], help="further overrides of our command")
    arguments = parser.parse_args()
    arguments.data = arguments.data.absolute()
    gpu = arguments.devices == "gpu"
    pin(arguments.cores, gpu=gpu)
    print(machine(), flush=True)
    networks = arguments.networks or (["mlp", "cnn"] if gpu else list(CASES))
    rows = []
    for name in networks:
        for chunk in arguments.chunks or [None]:
            found = _rows(name, chunk, measure(name, chunk, arguments))
            print("\n".join(" ".join(row) for row in found), flush=True)
            rows += found
    head = [
        "network",
        "chunk",
        "clock",
        "steps per epoch",
        "against",
        "its µs per step",
        "ours",
        "difference",
    ]
    head += ["ours / other", "of the least", *(["its steps/s", "ours"] if gpu else [])]
    print("\n" + table(head, rows))


def measure(name: str, chunk: int | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the command of a network and return what `bare_loop.BareLoopTimer` measured."""
    case = CASES[name]
    batches = case.batches if arguments.batches is None else arguments.batches
    if arguments.devices == "gpu" and arguments.batches is None:
        batches = None
    data = decoded(arguments.data, arguments.cache) if name == "lenet" else arguments.data
    with tempfile.TemporaryDirectory() as folder:
        times = Path(folder) / "times.json"
        options = {"_target_": "bare_loop.BareLoopTimer", "file": times, "data": data}
        options |= {argument: f"${{{key}}}" for argument, key in KEYS.items()}
        overrides = [
            *(f"experiment={case.preset}", f"paths.data={arguments.data}"),
            *(f"trainer.accelerator={arguments.devices}", f"trainer.max_epochs={arguments.pairs + 1}"),
            "trainer.limit_test_batches=1",
        ]
        if name == "lenet" and data != arguments.data:
            overrides += ["data=image_folder", f"data.path={arguments.data / FOLDER}"]
        if batches:
            overrides += [f"trainer.limit_train_batches={batches}"]
            options["batches"] = batches
        if chunk is not None:
            overrides += [f"trainer.batches_per_hook={chunk}"]
        overrides += [f"+callbacks.bare_loop.{key}={value}" for key, value in options.items()]
        run([TRAIN, *overrides, *arguments.override], folder)
        measured: dict[str, Any] = json.loads(times.read_text())
    expected = measured["bare_steps"] * (arguments.pairs + 1)
    if measured["steps"] != expected:
        print(f"{name}: {measured['steps']} optimizer steps counted, {expected} expected")
    return measured


def _rows(name: str, chunk: int | None, measured: dict[str, Any]) -> list[list[str]]:
    """Return the table's rows: wall and CPU time, compared with each bare loop."""
    rows = []
    for against in ("bare", "graph"):
        for number, clock in enumerate(("wall", "CPU")):
            if against not in measured or (against == "graph" and clock == "CPU"):
                continue
            steps = measured[f"{against}_steps"]
            ours = [1e6 * epoch[number] / measured["bare_steps"] for epoch in measured["epochs"][1:]]
            bare = [1e6 * epoch[number] / steps for epoch in measured[against][1:]]
            theirs = [(before + after) / 2 for before, after in pairwise(bare)]
            difference = median(our - their for our, their in zip(ours, theirs, strict=True))
            label = "–" if chunk is None else str(chunk)
            rows.append([name, label, clock, str(measured["bare_steps"]), against])
            rows[-1] += [f"{median(theirs):.0f}", f"{median(ours):.0f}", f"{difference:.0f}"]
            rows[-1] += [spread(ratios(ours, theirs)), f"{min(ours) / min(bare):.2f}"]
            if "graph" in measured:
                rows[-1] += [f"{1e6 / median(theirs):.0f}", f"{1e6 / median(ours):.0f}"]
    return rows


if __name__ == "__main__":
    main()
