"""Measure our dropout on one CPU core compared with `torch.nn.Dropout`, alone and within a training step.

    python benchmarks/dropout_cost.py --rounds 30

Both take turns. Alone: forward and backward pass of 100×64×12×12 features, as before the head of `model=cnn`.
Step: forward and backward pass, and SGD, of `model=cnn` on batches of 100 MNIST-sized images.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from measurement import format_median, machine, pin, ratios, spread, table

if TYPE_CHECKING:
    import torch


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30, help="measurements of each kind")
    rounds = parser.parse_args().rounds
    pin(1)  # before torch is imported, which reads the number of threads

    import torch

    rows = []
    for precision in (torch.float32, torch.bfloat16):
        for name, kinds in (("alone", alone(precision)), ("step of `model=cnn`", steps(precision))):
            times = interleave(kinds, rounds)
            milliseconds = [format_median([1000 * value for value in times[kind]]) for kind in kinds]
            share = spread(ratios(times["ours"], times["torch"]))
            rows.append([name, str(precision).removeprefix("torch."), *milliseconds, share])
    print(machine())
    print(table(["", "precision", "torch [ms]", "ours [ms]", "ours to torch"], rows))


def alone(precision: "torch.dtype") -> dict[str, Callable[[], None]]:
    """Return a forward and backward pass of each dropout."""
    import torch

    from project.modules.networks.dropout import Dropout

    features = torch.randn(100, 64, 12, 12, dtype=precision).to(memory_format=torch.channels_last)
    gradient = torch.randn_like(features)
    features.requires_grad_()

    def passes(layer: torch.nn.Module) -> Callable[[], None]:
        return lambda: torch.autograd.grad(layer(features), features, gradient) and None

    return {"torch": passes(torch.nn.Dropout(0.25)), "ours": passes(Dropout(0.25))}


def steps(precision: "torch.dtype") -> dict[str, Callable[[], None]]:
    """Return a training step of the network with each dropout."""
    import torch
    from torch import nn

    from project.modules.networks.cnn import CNN3x3
    from project.modules.networks.dropout import Dropout

    images, labels = torch.randn(100, 1, 28, 28), torch.randint(10, (100,))

    def step_of(network: nn.Module) -> Callable[[], None]:
        network.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(network.parameters(), 0.001, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                loss = nn.functional.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()

        return step

    theirs = CNN3x3((1, 28, 28), 10)
    for part in (theirs.body, theirs.head):
        for number, layer in enumerate(part):
            if isinstance(layer, Dropout):
                part[number] = nn.Dropout(layer.p)
    return {"torch": step_of(theirs), "ours": step_of(CNN3x3((1, 28, 28), 10))}


def interleave(kinds: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Return the durations of each kind [s], which take turns after two rounds without measurement."""
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(rounds + 2):
        for name, work in kinds.items():
            began = time.perf_counter()
            work()
            if number >= 2:
                times[name].append(time.perf_counter() - began)
    return times


if __name__ == "__main__":
    main()
