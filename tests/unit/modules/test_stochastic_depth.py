"""Stochastic depth: probabilities by depth, skipped branches, and an unchanged network in evaluation."""

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth, stochastic_depth

from project.modules.networks.resnet import BasicBlock, ResNet
from project.modules.networks.stochastic_depth import drop_probabilities
from project.modules.networks.vit import ViT

SHAPE = (3, 8, 8)


def networks(probability: float) -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        ResNet(SHAPE, 5, depth=14, width=4, stochastic_depth=probability),
        ViT(SHAPE, 5, dim=16, depth=4, heads=2, stochastic_depth=probability),
    ]


def test_probabilities_grow_linearly_to_that_of_the_last_block() -> None:
    # Huang et al. 2016, eq. 4, with p_L = 0.5: survival 1 - l / L · 0.5.
    assert drop_probabilities(0.5, 4) == [0.125, 0.25, 0.375, 0.5]
    expected = [round(0.5 * block / 6, 6) for block in range(1, 7)]
    resnet, vit = networks(0.5)
    drops = [module for module in resnet.modules() if isinstance(module, StochasticDepth)]
    assert [round(module.p, 6) for module in drops] == expected
    pairs = [module.p for module in vit.modules() if isinstance(module, StochasticDepth)]
    assert pairs == [0.125, 0.125, 0.25, 0.25, 0.375, 0.375, 0.5, 0.5]


def test_a_block_equals_its_formula_with_the_draws_of_torchvision() -> None:
    torch.manual_seed(0)
    block = BasicBlock(4, 4, 1, drop_probability=0.5)
    nn.init.ones_(block.norm2.weight)
    inputs = torch.randn(64, 4, 6, 6)
    torch.manual_seed(1)
    outputs = block(inputs)
    torch.manual_seed(1)
    branch = block.norm2(block.conv2(torch.relu(block.norm1(block.conv1(inputs)))))
    assert torch.equal(outputs, torch.relu(stochastic_depth(branch, 0.5, "row") + inputs))
    skipped = [torch.equal(new, torch.relu(old)) for new, old in zip(outputs, inputs, strict=True)]
    assert 20 <= sum(skipped) <= 44


@pytest.mark.parametrize("which", [0, 1])
def test_evaluation_and_weights_are_those_of_the_plain_network(which: int) -> None:
    plain, dropping = networks(0.0)[which], networks(0.5)[which]
    assert plain.state_dict().keys() == dropping.state_dict().keys()
    images = torch.randn(6, *SHAPE)
    with torch.no_grad():
        assert torch.equal(plain.eval()(images), dropping.eval()(images))


def test_a_vit_without_its_branches_passes_the_tokens_on() -> None:
    vit = networks(0.999999)[1].train()
    for module in vit.modules():
        if isinstance(module, StochasticDepth):
            module.p = 1.0
    images = torch.randn(2, *SHAPE)
    tokens = vit.embed(images).flatten(2).transpose(1, 2) + vit.position
    assert torch.equal(vit(images), vit.head(vit.blocks.norm(tokens).mean(dim=1)))
