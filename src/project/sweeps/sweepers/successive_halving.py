"""Asynchronous successive halving (ASHA), without processes and files.

Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", MLSys, arXiv 1810.05934, Algorithm 2,
with early-stopping rate s = 0. A trial trains for a few epochs, to the lowest rung. Whenever a worker is
free, a trial among the best 1/η of a rung continues to the next rung; without one, a new trial starts.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Trial(NamedTuple):
    """State of a trial.

    Args:
        values: value at each rung that the trial has reached, larger is better; -inf for a failure.
        is_training: true if the trial trains, or waits to train, toward its next rung.
    """

    values: Sequence[float]
    is_training: bool = False


def rung_epochs(min_epochs: int, max_epochs: int, reduction_factor: int) -> list[int]:
    """Return the epochs after which trials are compared: r η^k for k = 0, …, K - 1, and R at the top rung K.

    The paper's r, R and η are the arguments; K = ⌊log_η(R / r)⌋.
    """
    epochs = [min_epochs]
    while epochs[-1] * reduction_factor <= max_epochs:
        epochs.append(epochs[-1] * reduction_factor)
    return [*epochs[:-1], max_epochs]


def find_promotion(trials: Sequence[Trial], num_rungs: int, reduction_factor: int) -> int | None:
    """Return the index of the trial to continue; None if a new trial should start (`get_job` of the paper).

    Higher rungs come first, then better trials; of equal trials, the earlier one. Failed trials count in the
    size of a rung, but are never promoted.
    """
    for rung in range(num_rungs - 2, -1, -1):
        reached = [index for index, trial in enumerate(trials) if len(trial.values) > rung]
        reached.sort(key=lambda index: -trials[index].values[rung])
        for index in reached[: len(reached) // reduction_factor]:
            values, is_training = trials[index]
            is_promoted = is_training or len(values) > rung + 1
            if not is_promoted and math.isfinite(values[rung]):
                return index
    return None
