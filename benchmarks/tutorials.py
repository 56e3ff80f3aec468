"""Compare the training scripts of tutorials with our commands: the same recipes, and a faster recipe.

    python benchmarks/tutorials.py --data DIR                         all networks, one epoch a command
    python benchmarks/tutorials.py --data DIR --networks mlp --pairs 7 --epochs 2
    python benchmarks/tutorials.py --data DIR --networks lenet --full   ten epochs, for the accuracies

A round runs the tutorial's command (`benchmarks/tutorials/*.py`) and then ours on the same core. The time per
epoch is training alone for the tutorials, and includes logging and checkpoints for our command. The time of
the command includes tests. `fast` compares all epochs of experiment=mnist_fast with ten of the cnn tutorial:
`--epochs` are measured and the others extrapolated. Our time includes decoding CIFAR-10's image files; the
tutorial reads decoded images, as in the official files.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from cifar10_arrays import FOLDER, decoded
from measurement import HERE, TRAIN, format_median, machine, pin, ratios, run, spread, table

TUTORIAL_EPOCHS = 10


class Pair(NamedTuple):
    """Tutorial and preset to compare."""

    script: str  # in benchmarks/tutorials
    preset: str
    workers: tuple[int, ...] = (0,)  # of the tutorial's loaders, the original number first
    own_epochs: bool = False  # train for the preset's epochs, the tutorial for ten


PAIRS = {
    "mlp": Pair("mlp", "mnist_mlp"),
    "linear": Pair("linear", "mnist_linear"),
    "lenet": Pair("lenet", "cifar10_lenet", (2, 0)),
    "convnet": Pair("convnet", "mnist_convnet", (2, 0)),
    "cnn": Pair("cnn", "mnist_cnn"),
    "fast": Pair("cnn", "mnist_fast", own_epochs=True),
}


class Measured(NamedTuple):
    """Measurements of one command."""

    training_s: float  # per epoch, or of all epochs if `own_epochs`
    training_cpu_s: float  # CPU time, including worker processes
    command_s: float
    command_cpu_s: float
    accuracy: float  # on the test images


def main() -> None:
    """Compare the chosen networks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST/raw and cifar10_jpeg")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "project-benchmarks")
    parser.add_argument("--networks", nargs="+", choices=tuple(PAIRS), default=list(PAIRS))
    parser.add_argument("--pairs", type=int, default=5, help="number of rounds per network")
    parser.add_argument("--epochs", type=int, default=1, help="epochs per command")
    parser.add_argument(
        "--full", action="store_true", help="ten epochs and, unless --pairs is given, one round"
    )
    parser.add_argument("--batches", type=int, help="limit of each epoch and test, for a trial")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--override", nargs="*", default=[], help="further overrides of our command")
    arguments = parser.parse_args()
    if arguments.full:
        arguments.epochs = TUTORIAL_EPOCHS
        arguments.pairs = 1 if arguments.pairs == parser.get_default("pairs") else arguments.pairs
    arguments.data = arguments.data.absolute()
    pin(arguments.cores)
    print(machine(), flush=True)
    rows = [row for name in arguments.networks for row in compare(name, arguments)]
    head = ["network", "workers", "rounds", "what", "tutorial, s", "ours, s", "times as fast"]
    head += ["tutorial, CPU s", "ours, CPU s", "times as fast", "tutorial's test acc., %", "ours, %"]
    print("\n" + table(head, rows))


def compare(name: str, arguments: argparse.Namespace) -> list[list[str]]:
    """Run a network's rounds and return its rows of the table, for each number of workers."""
    pair = PAIRS[name]
    data = decoded(arguments.data, arguments.cache) if name == "lenet" else arguments.data
    ours: list[Measured] = []
    tutorials: dict[int, list[Measured]] = {
        workers: [] for workers in (pair.workers[:1] if arguments.full else pair.workers)
    }
    for number in range(arguments.pairs):
        for workers, measured in tutorials.items():
            measured.append(tutorial(pair, workers, data, arguments))
        ours.append(our_command(pair, number + 1, arguments))
        shown = ", ".join(f"{each[-1].training_s:.2f}" for each in tutorials.values())
        print(f"{name} {number + 1}: tutorial {shown} s, ours {ours[-1].training_s:.2f} s", flush=True)
    return [row for workers, measured in tutorials.items() for row in _rows(name, workers, measured, ours)]


def tutorial(pair: Pair, workers: int, data: Path, arguments: argparse.Namespace) -> Measured:
    """Run a tutorial's script."""
    command = [str(HERE / "tutorials" / f"{pair.script}.py"), "--data", str(data)]
    command += ["--epochs", str(arguments.epochs), "--workers", str(workers)]
    if arguments.batches:
        command += ["--batches", str(arguments.batches)]
    with tempfile.TemporaryDirectory() as folder:
        finished = run(command, folder)
    shown = json.loads(finished.output.splitlines()[-1])
    training_s, training_cpu_s, test_s = (mean(shown[key]) for key in ("train_s", "train_cpu_s", "test_s"))
    command_s, command_cpu_s = finished.seconds, finished.cpu_s
    if pair.own_epochs:
        missing = TUTORIAL_EPOCHS - arguments.epochs
        command_s += missing * (training_s + test_s)
        command_cpu_s += missing * (training_cpu_s + test_s)  # only the wall time of a test is known
        training_s *= TUTORIAL_EPOCHS
        training_cpu_s *= TUTORIAL_EPOCHS
    return Measured(training_s, training_cpu_s, command_s, command_cpu_s, shown["test_acc"])


def our_command(pair: Pair, seed: int, arguments: argparse.Namespace) -> Measured:
    """Run scripts/train.py with the preset."""
    with tempfile.TemporaryDirectory() as folder:
        times = Path(folder) / "times.json"
        overrides = [
            *(f"experiment={pair.preset}", f"paths.data={arguments.data}", f"seed={seed}"),
            *("+callbacks.stopwatch._target_=stopwatch.Stopwatch", f"+callbacks.stopwatch.file={times}"),
        ]
        if pair.script == "lenet" and not (arguments.data / "cifar-10-batches-py").is_dir():
            overrides += ["data=image_folder", f"data.path={arguments.data / FOLDER}"]
        if not pair.own_epochs:
            overrides += [f"trainer.max_epochs={arguments.epochs}"]
        if arguments.batches:
            overrides += [f"trainer.limit_{split}_batches={arguments.batches}" for split in ("train", "test")]
        finished = run([TRAIN, *overrides, *arguments.override], folder)
        epochs = json.loads(times.read_text())["epochs"]
        status = json.loads(next(Path(folder).glob("outputs/*/*/status.json")).read_text())
    total = sum if pair.own_epochs else mean
    training_s, training_cpu_s = (total(clock) for clock in zip(*epochs, strict=True))
    accuracy = status["metrics"]["test/acc"]
    return Measured(training_s, training_cpu_s, finished.seconds, finished.cpu_s, accuracy)


def _rows(name: str, workers: int, theirs: Sequence[Measured], ours: Sequence[Measured]) -> list[list[str]]:
    """Return the rows of the table, for training and for the command."""
    rows = []
    for what in ("training", "command"):
        rows.append([name, str(workers), str(len(ours)), what])
        for clock in ("s", "cpu_s"):
            our_times, their_times = (
                [getattr(measured, f"{what}_{clock}") for measured in each] for each in (ours, theirs)
            )
            rows[-1] += [format_median(their_times, ".2f"), format_median(our_times, ".2f")]
            rows[-1] += [spread(ratios(their_times, our_times))]
        rows[-1] += [
            format_median([100 * measured.accuracy for measured in each], ".2f") for each in (theirs, ours)
        ]
    return rows


if __name__ == "__main__":
    main()
