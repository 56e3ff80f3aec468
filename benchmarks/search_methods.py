"""Compare searches of hyperparameters at equal budgets of epochs: random, TPE with pruning, ASHA and PBT.

    python benchmarks/search_methods.py --data DIR --results DIR --repeats 5
    python benchmarks/search_methods.py --data DIR --results DIR --dataset cifar10

Each search trains the MLP on a tenth of MNIST, or LeNet on a tenth of CIFAR-10, and may spend `--budget`
epochs. The searches have the same space. A search stops once its trials have trained for the budget; trials
that end later do not count. The table shows the test accuracy of the configuration with the best validation
accuracy, mean ± sample standard deviation over the repeats, and the validation accuracy that a search had
found after parts of the budget. `--results` keeps the steps of each finished search in a file, so that a
stopped benchmark continues, and holds the regret curves, `regret_<dataset>.png`.

PBT compares its members after each epoch. It searches dropout from 0.01 on, because a training cannot add
dropout to a network without it.
"""

import argparse
import csv
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from measurement import TRAIN, machine, pin, run, table

SPACE = {
    "optim.lr": "tag(log,interval(1e-4,1))",
    "optim.weight_decay": "tag(log,interval(1e-6,1e-2))",
    "data.batch_size": "choice(16,32,64,128)",
}
DATASETS = {
    "mnist": ["data=mnist", "paths.data={data}", "model=mlp", "model.dropout=interval({min_dropout},0.5)"],
    "cifar10": ["data=image_folder", "data.path={data}/cifar10_jpeg", "model=lenet"],
}
MAX_EPOCHS = 9
PARTS = (0.25, 0.5, 0.75, 1.0)
"""Parts of the budget after which the best value is shown."""


class Method(NamedTuple):
    """A search, with at least as many trials as the budget allows."""

    options: list[str]
    trials_per_budget: float  # relative to trials that all train for MAX_EPOCHS
    number_key: str = "hydra.sweeper.n_trials"
    epochs_at_pause: Callable[[dict[str, Any]], int] = lambda job: 3 ** (len(job["pause_values"]) - 1)
    min_dropout: float = 0.0


METHODS = {
    "random": Method(["hydra/sweeper=optuna", "hydra.sweeper.sampler=random"], 1),
    "TPE, median pruning": Method(["hydra/sweeper=optuna", "hydra.sweeper.pruner=median"], 3),
    "ASHA": Method(["hydra/sweeper=asha"], 4),
    "PBT": Method(
        ["hydra/sweeper=pbt", "hydra.sweeper.interval_epochs=1"],
        1,
        "hydra.sweeper.population_size",
        lambda job: int(job["start_epoch"]) + len(job["pause_values"]),
        min_dropout=0.01,
    ),
}


class Step(NamedTuple):
    """Part of a trial that a job trained without interruption."""

    epochs: int
    best_val: float  # best validation accuracy of the trial up to its end
    test: float | None  # of a finished trial


def main() -> None:
    """Run all searches and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST/raw and cifar10_jpeg")
    parser.add_argument("--dataset", choices=DATASETS, default="mnist")
    parser.add_argument(
        "--results", type=Path, required=True, help="folder for finished searches and the picture"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--budget", type=int, default=81, help="epochs of a search")
    arguments = parser.parse_args()
    pin(1)
    print(machine(), flush=True)
    arguments.results.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[list[Step]]] = {name: [] for name in METHODS}
    for seed in range(arguments.repeats):
        for name in METHODS:
            found[name].append(steps_of_search(name, seed, arguments))
    head = ["search", "test accuracy, %", "finished", *(f"val at {part:.0%}" for part in PARTS)]
    rows = [row(name, repeats, arguments.budget) for name, repeats in found.items()]
    print(table(head, rows))
    draw(found, arguments.budget, arguments.results / f"regret_{arguments.dataset}.png")


def steps_of_search(name: str, seed: int, arguments: argparse.Namespace) -> list[Step]:
    """Return the steps of a search, which runs unless its result is there."""
    file = arguments.results / f"{arguments.dataset}_{arguments.budget}_{name.split(',')[0]}_{seed}.json"
    if not file.exists():
        with tempfile.TemporaryDirectory() as folder:
            sweep = Path(folder) / "sweep"
            search(METHODS[name], seed, arguments, sweep)
            file.write_text(json.dumps(steps_of(sweep, METHODS[name])))
        print(f"{name}, seed {seed}", flush=True)
    return [Step(*step) for step in json.loads(file.read_text())]


def search(method: Method, seed: int, arguments: argparse.Namespace, sweep: Path) -> None:
    """Run one search, one job at a time."""
    trials = round(method.trials_per_budget * arguments.budget / MAX_EPOCHS)
    values = {"data": arguments.data.absolute(), "min_dropout": method.min_dropout}
    dataset = [part.format(**values) for part in DATASETS[arguments.dataset]]
    command = ["-m", *dataset, "trainer.accelerator=cpu", *(f"{key}={value}" for key, value in SPACE.items())]
    command += ["trainer.limit_train_batches=0.1", f"trainer.max_epochs={MAX_EPOCHS}", "logger=csv"]
    command += ["~callbacks.early_stopping", *method.options, f"{method.number_key}={trials}"]
    command += [f"hydra.sweeper.seed={seed}", "hydra.launcher.jobs=1", f"hydra.sweep.dir={sweep}"]
    run([TRAIN, *command], sweep.parent)


def steps_of(sweep: Path, method: Method) -> list[Step]:
    """Return the steps of a search in the order in which they ended."""
    trained: dict[int, int] = {}  # epochs by job
    steps = []
    for line in (sweep / "jobs.jsonl").read_text().splitlines():
        job = json.loads(line)
        if job["state"] not in ("done", "pruned", "paused"):
            continue
        with (sweep / job["name"] / "metrics.csv").open(newline="") as stream:
            values = [float(each["val/acc"]) for each in csv.DictReader(stream) if each["val/acc"]]
        reached = method.epochs_at_pause(job) if job["state"] == "paused" else len(values)
        test = job["metrics"].get("test/acc") if job["state"] == "done" else None
        if epochs := reached - trained.get(job["number"], job["start_epoch"]):
            trained[job["number"]] = reached
            steps.append(Step(epochs, max(values[:reached]), test))
    return steps


def row(name: str, repeats: Sequence[Sequence[Step]], budget: int) -> list[str]:
    """Return the cells of a method."""
    tests, finished = [], []
    best: dict[float, list[float]] = {part: [] for part in PARTS}
    for steps in repeats:
        spent, counted = 0, list[tuple[int, Step]]()
        for step in steps:
            spent += step.epochs
            if spent <= budget:
                counted.append((spent, step))
        ended = [step for _, step in counted if step.test is not None]
        tests.append(max(ended, key=lambda step: step.best_val).test or 0.0)
        finished.append(len(ended))
        for part, values in best.items():
            values.append(max((step.best_val for at, step in counted if at <= part * budget), default=0.0))
    cells = [f"{percent(tests)}", f"{statistics.mean(finished):.1f}"]
    return [name, *cells, *(percent(values) for values in best.values())]


def draw(found: Mapping[str, Sequence[Sequence[Step]]], budget: int, file: Path) -> None:
    """Draw the regret of each search: its distance to the best accuracy found by any search."""
    best = max(step.best_val for repeats in found.values() for steps in repeats for step in steps)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    epochs = np.arange(1, budget + 1)
    for name, repeats in found.items():
        regrets = best - np.stack([best_by_epoch(steps, budget) for steps in repeats])
        mean, error = regrets.mean(0), regrets.std(0, ddof=1) / len(repeats) ** 0.5
        (line,) = axes.plot(epochs, mean, label=name)
        axes.fill_between(epochs, mean - error, mean + error, alpha=0.15, color=line.get_color(), linewidth=0)
    axes.set(xlabel="epochs trained by all trials", ylabel="regret in validation accuracy", yscale="log")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    axes.yaxis.set_minor_formatter(PercentFormatter(1, decimals=1))
    axes.grid(which="both", alpha=0.2)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=120)


def best_by_epoch(steps: Sequence[Step], budget: int) -> np.ndarray:
    """Return the best accuracy after each epoch of the budget (budget,); NaN before the first step ends."""
    best = np.full(budget, np.nan)
    spent, value = 0, 0.0
    for step in steps:
        spent += step.epochs
        value = max(value, step.best_val)
        best[spent - 1 :] = value
    return best


def percent(fractions: Sequence[float]) -> str:
    """Format the mean and the sample standard deviation of fractions."""
    values = [100 * fraction for fraction in fractions]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


if __name__ == "__main__":
    main()
