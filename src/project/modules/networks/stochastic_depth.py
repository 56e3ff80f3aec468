"""Stochastic depth: training skips random residual branches (Huang et al. 2016, arXiv 1603.09382)."""

from torch import nn


def drop_probabilities(last: float, blocks: int) -> list[float]:
    """Return the drop probability of each block: `last` · l / L for block l = 1 … L (eq. 4)."""
    return [last * block / blocks for block in range(1, blocks + 1)]


def drop_residual(probability: float) -> nn.Module:
    """Return a module that zeroes the residual branch of random images in training.

    The module divides the kept branches by 1 - `probability`, which leaves their mean as it is.
    """
    if not probability:
        return nn.Identity()
    from torchvision.ops import StochasticDepth  # importing torchvision takes longer than building a network

    return StochasticDepth(probability, "row")
