"""Explanations of networks of timm and transformers: methods that fit, and rollouts equal to direct ones."""

from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from project.errors import InputError
from project.inference.explain.attention import attention_weights, tokens_of_head
from project.inference.explain.feature_maps import dissect
from project.inference.explain.methods import METHODS, Attribution, Settings
from project.modules.networks.huggingface_model import HuggingFaceModel
from project.modules.networks.timm_model import TimmModel

CONVOLUTIONAL = ("grad_cam", "integrated_gradients", "occlusion")
TRANSFORMER = ("attention_rollout", "integrated_gradients", "occlusion")
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SHAPE = (3, 16, 16)


def check_methods(network: nn.Module, shape: tuple[int, ...], fitting: tuple[str, ...]) -> None:
    """Check that `auto` takes the first of the fitting methods, and that the others name their reason."""
    torch.manual_seed(1)
    images = torch.randn(2, *shape)
    assert Attribution(network, images[:1]).method == fitting[0]
    for method in METHODS:
        if method not in fitting:
            with pytest.raises(InputError, match=rf"^method={method}: .*; give method={fitting[0]}$"):
                Attribution(network, images[:1], method)
            continue
        attribution = Attribution(network, images[:1], method, Settings(num_steps=4))
        found = attribution.attribute(images.clone(), torch.tensor([0, 2]))
        assert found.shape == (2, *shape[1:])
        assert found.isfinite().all()
        assert found[0].std() > 0


def hugging_face(kind: str, folder: Path, shape: tuple[int, int, int] = SHAPE, **options: Any) -> nn.Module:
    """Return an image classifier of transformers with random weights, saved and loaded from a folder."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(num_labels=3, **options)
    getattr(transformers, f"{kind}ForImageClassification")(config).save_pretrained(folder)
    return HuggingFaceModel(shape, 3, str(folder)).eval()


@pytest.mark.parametrize(
    ("name", "fitting"),
    [
        ("resnet10t", CONVOLUTIONAL),
        ("vit_tiny_patch16_224", TRANSFORMER),
        ("deit_tiny_distilled_patch16_224", TRANSFORMER),
    ],
)
def test_networks_of_timm_have_explanations(name: str, fitting: tuple[str, ...]) -> None:
    pytest.importorskip("timm")
    check_methods(TimmModel((3, 64, 64), 3, name).eval(), (3, 64, 64), fitting)


@pytest.mark.parametrize(
    ("kind", "options", "fitting"),
    [
        ("ResNet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}, CONVOLUTIONAL),
        ("ViT", SMALL | {"image_size": 16, "patch_size": 4}, TRANSFORMER),
        ("Beit", SMALL | {"image_size": 16, "patch_size": 4}, TRANSFORMER),
        (
            "Swin",
            {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1], "num_heads": [2]}
            | {"window_size": 4},
            ("integrated_gradients", "occlusion"),
        ),
    ],
)
def test_networks_of_transformers_have_explanations(
    kind: str, options: dict[str, Any], fitting: tuple[str, ...], tmp_path: Path
) -> None:
    check_methods(hugging_face(kind, tmp_path, **options), SHAPE, fitting)


def rollout(weights: list[Tensor]) -> Tensor:
    """Return the product of half the attention and half the identity over the layers (B, N, N)."""
    return reduce(lambda flow, one: (one + torch.eye(one.shape[-1])) / 2 @ flow, weights, torch.eye(17))


def test_rollout_of_transformers_equals_that_of_its_own_weights(tmp_path: Path) -> None:
    network = hugging_face("ViT", tmp_path, **SMALL, image_size=16, patch_size=4)
    images = torch.randn(2, *SHAPE)
    implementation = network.network.config._attn_implementation
    found = Attribution(network, images[:1], "attention_rollout").attribute(images, torch.tensor([0, 1]))
    assert network.network.config._attn_implementation == implementation != "eager"

    network.network.set_attn_implementation("eager")
    weights = network.network(images, output_attentions=True).attentions
    shares = rollout([one.mean(1) for one in weights])[:, 0, 1:].unflatten(1, (4, 4)).detach()
    wanted = shares - shares.amin((1, 2), keepdim=True)
    patches = dissect(network, images[:1]).patches
    torch.testing.assert_close(found, patches.place(wanted, (16, 16)))


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_rollout_of_timm_reads_the_tokens_of_the_head(pool: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model(
        "vit_tiny_patch16_224", num_classes=3, img_size=64, embed_dim=16, depth=2, num_heads=2,
        global_pool=pool,
    ).eval()  # fmt: skip
    images = torch.randn(2, 3, 64, 64)
    anatomy = dissect(network, images)
    weights = attention_weights(network, anatomy.attention, images)
    tokens = network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(images))))
    for block, own in zip(network.blocks, weights, strict=True):
        attention = block.attn
        query, key, _ = (
            attention.qkv(block.norm1(tokens)).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        )  # B, heads, N, 8
        torch.testing.assert_close(own, (query @ key.mT * attention.scale).softmax(-1).mean(1).detach())
        tokens = block(tokens)
    read = tokens_of_head(network, anatomy.attention[-1], images)
    assert read.tolist() == ([True] + [False] * 16 if pool == "token" else [False] + [True] * 16)
    flow = rollout(weights)
    shares = flow[:, 0, 1:] if pool == "token" else flow[:, 1:, 1:].mean(1)
    shares = shares.unflatten(1, (4, 4))
    found = Attribution(network, images[:1]).attribute(images, torch.tensor([0, 1]))
    wanted = anatomy.patches.place(shares - shares.amin((1, 2), keepdim=True), (64, 64))
    torch.testing.assert_close(found, wanted)
