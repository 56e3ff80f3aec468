"""Compare a run of one epoch with the same run by plain Lightning, and with importing the libraries.

    python benchmarks/run_cost.py --data DIR

The MLP on MNIST: training on 55,000 images, validation on 5,000, then the test, with checkpoints, TensorBoard
and a progress bar. `stock` is benchmarks/tutorials/stock_lightning.py; `imports` only imports the libraries.
"""

import argparse
import tempfile
from importlib.util import find_spec
from pathlib import Path

from measurement import HERE, TRAIN, Finished, format_median, machine, pin, ratios, run, spread, table

IMPORTS = "import torch, torchvision, torchmetrics, lightning, hydra, torch.utils.tensorboard"


def main() -> None:
    """Time the three commands in turn, several times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST/raw")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batches", type=int, help="limit of each epoch, for a trial")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--override", nargs="*", default=[], help="further overrides of our command")
    arguments = parser.parse_args()
    data = arguments.data.absolute()
    limits = [f"trainer.limit_{split}_batches={arguments.batches}" for split in ("train", "val", "test")]
    stock = [str(HERE / "tutorials" / "stock_lightning.py"), "--data", str(data)]
    stock += ["--epochs", str(arguments.epochs)]
    stock += ["--batches", str(arguments.batches)] if arguments.batches else []
    commands = {
        "ours": [
            *(str(TRAIN), "experiment=mnist_mlp", f"paths.data={data}", "data.val_size=5000"),
            *(f"trainer.max_epochs={arguments.epochs}", *(limits if arguments.batches else [])),
            *arguments.override,
        ],
        "stock": stock,
        "imports": ["-c", IMPORTS],
    }
    pin(arguments.cores)
    print(machine())
    print(f"the stock script's bar: {'rich' if find_spec('rich') else 'tqdm, rich is not installed'}")
    found: dict[str, list[Finished]] = {name: [] for name in commands}
    for number in range(arguments.pairs):
        for name, command in commands.items():
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(run(command, folder))
        shown = ", ".join(f"{name} {finished[-1].seconds:.2f}" for name, finished in found.items())
        print(f"round {number + 1}, s: {shown}", flush=True)
    rows = []
    for field, clock in (("seconds", "wall"), ("cpu_s", "CPU")):
        times = {name: [getattr(each, field) for each in finished] for name, finished in found.items()}
        over = [ours - bare for ours, bare in zip(times["ours"], times["imports"], strict=True)]
        rows.append([clock, *(format_median(times[name], ".2f") for name in commands)])
        rows[-1] += [spread(ratios(times["ours"], times["stock"])), spread(over)]
    head = ["clock", "ours, s", "stock, s", "imports, s", "ours / stock", "ours over the imports, s"]
    print("\n" + table(head, rows))


if __name__ == "__main__":
    main()
