"""Dropout with cheap random numbers: the distribution of `torch.nn.Dropout`, and its gradients."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from project.modules.networks.dropout import Dropout

RATES = (0.5, 0.25, 0.1, 1 / 3, 0.9, 0.003)
SIGNIFICANCE = 1e-6
"""Probability of a failure of each statistical comparison, if the seeds were not fixed."""


def kept(p: float, shape: tuple[int, ...], *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return True for each kept element of ones."""
    torch.manual_seed(seed)
    return Dropout(p)(torch.ones(shape, dtype=dtype)) != 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("p", RATES)
def test_share_of_zeros_is_binomial_and_the_scale_keeps_the_mean(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    dropped = Dropout(p)(torch.ones(300_003, dtype=dtype))
    zeros = int((dropped == 0).sum())
    assert stats.binomtest(zeros, len(dropped), p).pvalue > SIGNIFICANCE
    assert dropped.dtype == dtype
    values = dropped.unique().double()
    assert values.tolist() == pytest.approx([0, 1 / (1 - p)], rel=max(1e-4, torch.finfo(dtype).eps))


@pytest.mark.parametrize("p", RATES)
def test_elements_batches_and_layers_are_independent(p: float) -> None:
    torch.manual_seed(2)
    layer = Dropout(p)
    first, second = (layer(torch.ones(2**18)) != 0 for _ in range(2))
    pairs = [(first, second)]
    pairs += [(first[:-lag], first[lag:]) for lag in (1, 2, 3, 4, 7, 8, 16, 624)]
    for left, right in pairs:
        table = torch.stack([(left & right).sum(), (left & ~right).sum(), (~left & right).sum()]).tolist()
        counts = [[table[0], table[1]], [table[2], len(left) - sum(table)]]
        assert stats.chi2_contingency(counts, correction=False).pvalue > SIGNIFICANCE


@pytest.mark.slow
def test_every_position_is_dropped_equally_often() -> None:
    rounds = 2000
    dropped = sum((~kept(0.25, (3, 5, 7), seed=seed)).double() for seed in range(rounds))
    assert isinstance(dropped, Tensor)
    deviation = (dropped - rounds / 4) / math.sqrt(rounds * 0.25 * 0.75)
    assert stats.kstest(deviation.flatten().numpy(), "norm").pvalue > SIGNIFICANCE


@pytest.mark.parametrize(
    "features",
    [
        torch.randn(4, 6, 5, 3).to(memory_format=torch.channels_last),
        torch.randn(7, 5).T,
        torch.randn(4, 6)[:, ::2],
        torch.randn(2, 1).expand(2, 5),
        torch.randn(()),
        torch.randn(0, 3),
    ],
    ids=["channels last", "transposed", "strided", "expanded", "scalar", "empty"],
)
def test_any_layout_has_the_gradient_of_its_factors(features: Tensor) -> None:
    source = features.double().requires_grad_()
    torch.manual_seed(3)
    dropped = Dropout(0.4)(source)
    assert dropped.stride() == torch.empty_like(features).stride()
    dropped.backward(torch.ones_like(dropped))
    assert source.grad is not None
    torch.testing.assert_close(source.grad * features, dropped.detach())


def test_seed_determines_the_zeros() -> None:
    shape = (64, 33)
    assert torch.equal(kept(0.5, shape, seed=4), kept(0.5, shape, seed=4))
    assert not torch.equal(kept(0.5, shape, seed=4), kept(0.5, shape, seed=5))
    assert torch.equal(kept(0.5, shape, seed=4), kept(0.5, shape, seed=4, dtype=torch.bfloat16))


def test_limits_and_evaluation_are_those_of_torch() -> None:
    features = torch.randn(8, 8)
    assert torch.equal(Dropout(0)(features), features)
    assert torch.equal(Dropout(1)(features), torch.zeros(8, 8))
    assert torch.equal(Dropout(0.5).eval()(features), features)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Dropout(1.5)
    assert isinstance(Dropout(0.5), nn.Dropout)
    with pytest.raises(RuntimeError, match="Float can't be cast"):
        Dropout(0.5)(torch.arange(9))


def test_an_exported_network_predicts_as_before() -> None:
    network = nn.Sequential(nn.Linear(4, 4), Dropout(0.5))
    program = torch.export.export(network.eval(), (torch.zeros(2, 4),))
    images = torch.randn(2, 4)
    torch.testing.assert_close(program.module()(images), network(images))
