"""Sanity checks of saliency maps: a patch that decides the class, and random weights.

Adebayo et al. 2018 (arXiv 1810.03292), sec. 3.
"""

from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from project.inference.explain.methods import Attribution, Settings, to_maps
from project.modules.networks.cnn import CNN3x3
from project.modules.networks.resnet import ResNet
from project.modules.networks.vit import ViT

SIDE, PATCH = 18, 6
SETTINGS = Settings(baseline="mean", num_steps=16)
NETWORKS = {
    "cnn": lambda: CNN3x3((1, SIDE, SIDE), 2, channels=(6, 8), hidden_dim=16, dropout=(0, 0)),
    "resnet": lambda: ResNet((1, SIDE, SIDE), 2, depth=8, width=4),
    "vit": lambda: ViT((1, SIDE, SIDE), 2, patch_size=3, dim=16, depth=2, heads=2),
}
HIT_RATES = {  # smallest shares of maps whose maximum lies in the patch; measured: 2 to 17 % more
    ("cnn", "grad_cam"): 0.8,
    ("cnn", "integrated_gradients"): 0.95,
    ("cnn", "occlusion"): 0.95,
    ("resnet", "grad_cam"): 0.8,
    ("resnet", "integrated_gradients"): 0.95,
    ("resnet", "occlusion"): 0.95,
    ("vit", "attention_rollout"): 0.85,
    ("vit", "integrated_gradients"): 0.9,
    ("vit", "occlusion"): 0.4,
}
MAX_CORRELATION = 0.5
"""Largest mean rank correlation of maps before and after randomizing all weights; measured: 0.08 to 0.42."""


def patched(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return noise with a patch of horizontal or vertical stripes at a random place, classes and places."""
    draws = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, SIDE, SIDE, generator=draws) - 0.5
    classes = torch.randint(0, 2, (count,), generator=draws)
    places = torch.randint(0, SIDE - PATCH + 1, (count, 2), generator=draws)
    stripes = (2.0 * (torch.arange(PATCH) % 2) - 1).expand(PATCH, PATCH)
    for image, label, (top, left) in zip(images, classes.tolist(), places.tolist(), strict=True):
        image[0, top : top + PATCH, left : left + PATCH] = stripes if label else stripes.T
    return images, classes, places


@cache
def trained(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    images, classes, _ = patched(2048, seed=1)
    for step in range(160):
        rows = slice(32 * step % 2048, 32 * step % 2048 + 32)
        loss = F.cross_entropy(network(images[rows]), classes[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), HIT_RATES)
def test_maps_look_at_the_patch_that_decides(name: str, method: str) -> None:
    network = trained(name)
    images, classes, places = patched(100, seed=2)
    assert (network(images).argmax(1) == classes).double().mean() > 0.95
    maps = to_maps(Attribution(network, images[:1], method, SETTINGS).attribute(images, classes))
    peaks = maps.flatten(1).argmax(1)
    peaks = torch.stack([peaks // SIDE, peaks % SIDE], dim=1)
    inside = ((peaks >= places) & (peaks < places + PATCH)).all(1).double().mean()
    chance = PATCH**2 / SIDE**2
    print(f"{name} {method}: {inside:.2f} of the maxima in the patch, {chance:.2f} by chance")
    assert inside >= HIT_RATES[name, method]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), HIT_RATES)
def test_maps_depend_on_the_weights(name: str, method: str) -> None:
    images, classes, _ = patched(40, seed=3)
    torch.manual_seed(4)
    random = NETWORKS[name]()
    for parameter in random.parameters():  # some are initialized to zero or one
        nn.init.normal_(parameter, std=0.2)
    own, other = (
        to_maps(Attribution(network, images[:1], method, SETTINGS).attribute(images, classes)).flatten(1)
        for network in (trained(name), random.eval())
    )
    correlation = rank_correlation(own, other).abs().mean()
    print(f"{name} {method}: rank correlation {correlation:.2f} with the maps of random weights")
    assert correlation < MAX_CORRELATION
    assert rank_correlation(own, own).mean() == pytest.approx(1)


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Spearman's correlation of each pair of rows (N, P); ties in order."""
    ranks = [values.argsort(1).argsort(1).double() for values in (first, second)]
    centered = [one - one.mean(1, keepdim=True) for one in ranks]
    return (centered[0] * centered[1]).sum(1) / (centered[0].norm(dim=1) * centered[1].norm(dim=1))
