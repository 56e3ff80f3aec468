"""Measure the cost of TensorBoard's figures and training statistics.

    python benchmarks/tensorboard_cost.py paths.data=DIR                    both presets, five rounds each
    python benchmarks/tensorboard_cost.py paths.data=DIR --presets mnist_mlp --epochs 10 --rounds 3

Commands `scripts/train.py experiment=…` run in turn on the same core: with the defaults, without the
callbacks `visuals` and `training_stats`, and with `logger=none`. The order changes from round to round.
Ratios compare commands of the same round, by CPU time (less affected by other programs) and wall time. The
presets' epochs are limited, so the share of the figures is larger than in full runs.
"""

import argparse
import tempfile
from pathlib import Path

from measurement import TRAIN, Finished, format_median, machine, pin, ratios, run, spread, table

PRESETS = {"mnist_mlp": ("trainer.max_epochs=4",), "mnist_cnn": ("trainer.limit_train_batches=150",)}
"""Presets and the overrides that limit their length."""
VARIANTS: dict[str, tuple[str, ...]] = {
    "default": (),
    "without": ("~callbacks.visuals", "~callbacks.training_stats"),
    "logger=none": ("logger=none",),
}


def main() -> None:
    """Time the variants of the chosen presets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="paths.data=DIR, the folder with MNIST/raw")
    parser.add_argument("--presets", nargs="*", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="epochs, in place of the presets' limits")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--cores", type=int, default=1)
    arguments = parser.parse_args()
    data = Path(arguments.data.removeprefix("paths.data=")).absolute()
    pin(arguments.cores)
    print(machine())
    rows = []
    for preset in arguments.presets:
        limits = [*PRESETS[preset], *(["trainer.max_epochs=1"] if preset == "mnist_cnn" else [])]
        if arguments.epochs:
            limits = [word for word in limits if "max_epochs" not in word]
            limits.append(f"trainer.max_epochs={arguments.epochs}")
        command = [str(TRAIN), f"experiment={preset}", f"paths.data={data}", *limits]
        found = measure(command, arguments.variants, arguments.rounds)
        rows += rows_of(preset, found)
    head = ["preset", "clock", *arguments.variants]
    head += [f"{name} / without" for name in arguments.variants if name != "without"]
    print("\n" + table(head, rows))


def measure(command: list[str], variants: list[str], rounds: int) -> dict[str, list[Finished]]:
    """Run each variant once per round, in an order that rotates."""
    found: dict[str, list[Finished]] = {name: [] for name in variants}
    for number in range(rounds):
        rotated = variants[number % len(variants) :] + variants[: number % len(variants)]
        for name in rotated:
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(run([*command, *VARIANTS[name]], folder))
        shown = ", ".join(f"{name} {finished[-1].cpu_s:.2f}" for name, finished in found.items())
        print(f"{command[1]} round {number + 1}, CPU s: {shown}", flush=True)
    return found


def rows_of(preset: str, found: dict[str, list[Finished]]) -> list[list[str]]:
    """Return rows with medians of both clocks, and ratios to the variant `without`."""
    rows = []
    for field, clock in (("cpu_s", "CPU"), ("seconds", "wall")):
        times = {name: [getattr(command, field) for command in finished] for name, finished in found.items()}
        rows.append([preset, clock, *(format_median(values, ".2f") for values in times.values())])
        rows[-1] += [
            spread(ratios(values, times["without"]), ".3f")
            for name, values in times.items()
            if name != "without"
        ]
    return rows


if __name__ == "__main__":
    main()
