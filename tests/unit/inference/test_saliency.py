"""Tests of explanations: agreement with direct computations, and fit of methods to networks."""

import pytest
import torch
from conftest import DENSE_MODELS, EXTRA_MODELS, Compose, options
from torch import nn
from torchvision import models
from untrained_runs import untrained_run

from project.errors import InputError
from project.inference.explain.attention import attention_weights
from project.inference.explain.explainer import Explainer
from project.inference.explain.feature_maps import dissect
from project.inference.explain.methods import METHODS, Attribution, Settings, to_maps
from project.inference.predict.predictions import Predictor
from project.modules.networks.cnn import CNN5x5, CNNBatchNorm
from project.modules.networks.resnet import ResNet
from project.modules.networks.torchvision_model import TorchvisionModel
from project.modules.networks.vit import ViT

SMALL = {
    "airbench": ["model.widths=[4,4,4]"],
    "mlp": ["model.widths=[8]"],
    "resnet": ["model.depth=8", "model.width=4"],
    "rnn": ["model.hidden_dim=8"],
    "torchvision": ["model.name=shufflenet_v2_x0_5"],
    "vit": ["model.dim=8", "model.depth=2", "model.heads=2"],
}
FITTING = {
    "mlp": ("integrated_gradients", "occlusion"),
    "rnn": ("integrated_gradients", "occlusion"),
    "vit": ("attention_rollout", "integrated_gradients", "occlusion"),
}
"""Methods that fit, in the order of `auto`; those of other networks are convolutional."""
AUTO = dict.fromkeys(["cnn", "cnn_5x5", "cnn_batchnorm", "lenet", "torchvision"], "occlusion")
"""Heads that depend on places; of 20×22 pixels, the last map of shufflenet has one cell."""
MODELS = [name for name in options("model") if name not in EXTRA_MODELS | DENSE_MODELS]
DATA = ("data=synthetic", "data.input_shape=[3,20,22]", "data.num_classes=4")


def images_of(shape: tuple[int, ...], count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.manual_seed(5))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_network_has_explanations(composed: Compose, model: str) -> None:
    trained = untrained_run(composed, f"model={model}", *DATA, *SMALL.get(model, ()))
    images = images_of((3, 20, 22))
    fitting = FITTING.get(model, ("grad_cam", "integrated_gradients", "occlusion"))
    assert Explainer(trained).method == AUTO.get(model, fitting[0])
    for method in METHODS:
        if method not in fitting:
            with pytest.raises(
                InputError, match=rf"^method={method}: .*expected one of {', '.join(fitting)}\)"
            ):
                Explainer(trained, method)
            continue
        explainer = Explainer(trained, method, Settings(num_steps=4, window=8), batch_size=2)
        found = explainer.maps(images, targets=[0, 3, 1])
        assert found.maps.shape == found.attributions.shape == (3, 20, 22)
        assert found.maps.dtype == torch.float32
        assert found.targets.tolist() == [0, 3, 1]
        peaks = found.maps.amax((1, 2))
        assert found.maps.min() >= 0
        assert ((peaks == 1) | (peaks == 0)).all()
        if method in ("integrated_gradients", "occlusion"):
            assert (found.attributions != 0).any()
        probabilities = Predictor(trained).probabilities(images)
        torch.testing.assert_close(found.probabilities, probabilities)
        assert explainer.maps(images).targets.tolist() == found.predicted.tolist()


def test_integrated_gradients_are_complete_and_equal_a_direct_sum() -> None:
    torch.manual_seed(1)
    network = CNN5x5((1, 28, 28), 5).double().eval()
    images, targets = torch.randn(4, 1, 28, 28, dtype=torch.double), torch.tensor([0, 4, 2, 2])
    for baseline, black in (("black", -0.7), ("mean", 0.0)):
        settings = Settings(baseline=baseline, num_steps=100)
        shade = torch.full((1, 1, 1), -0.7)
        found = Attribution(network, images[:1], "integrated_gradients", settings, shade)
        sums = found.attribute(images.clone(), targets).sum((1, 2))
        start = torch.full_like(images, black)
        rows = torch.arange(4)
        wanted = network(images)[rows, targets] - network(start)[rows, targets]
        torch.testing.assert_close(sums, wanted.float(), rtol=0.02, atol=1e-3)

    gradients = torch.zeros_like(images)  # midpoint rule, with plain autograd
    for step in range(100):
        point = (start + (images - start) * (step + 0.5) / 100).requires_grad_()
        network(point)[rows, targets].sum().backward()
        gradients += point.grad / 100
    direct = ((images - start) * gradients).sum(1).float()
    both = torch.stack([found.attribute(images.clone(), targets).flatten(), direct.flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.999


def test_grad_cam_equals_the_papers_formula() -> None:
    torch.manual_seed(2)
    network = ResNet((3, 32, 32), 4, depth=8, width=8).eval()
    images, targets = torch.randn(2, 3, 32, 32), torch.tensor([1, 3])
    features = network.body(images).detach().requires_grad_()
    network.head(features.mean((2, 3)))[torch.arange(2), targets].sum().backward()
    cells = (features * features.grad.mean((2, 3), keepdim=True)).sum(1)  # 2, 8, 8
    attribution = Attribution(network, images[:1], "grad_cam")
    found = attribution.attribute(images, targets)
    assert (attribution.layer.name, attribution.layer.size) == ("body", (8, 8))
    torch.testing.assert_close(found, attribution.layer.place(cells, (32, 32)).detach())
    assert attribution.layer.start == (1.5, 1.5)
    assert Attribution(network, images[:1]).method == "grad_cam"  # global pooling
    assert not attribution.caveat
    frozen = network.requires_grad_(False)
    torch.testing.assert_close(Attribution(frozen, images[:1], "grad_cam").attribute(images, targets), found)


def test_cells_lie_where_they_look() -> None:
    """The gradient of a cell in a network with positive weights is centered at the cell's place."""
    network = CNNBatchNorm((1, 36, 32), 3).eval()
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.MaxPool2d):  # an average has a symmetric gradient
            network.set_submodule(name, nn.AvgPool2d(2))
    images = torch.rand(1, 1, 36, 32, requires_grad=True)
    chosen = dissect(network, images).deepest
    assert (chosen.name, chosen.size) == ("body", (5, 4))
    network.body(images)[0, :, 4, 1].sum().backward()
    weights = images.grad[0, 0] / images.grad.sum()
    center = [float((weights.sum(1 - axis) * torch.arange((36, 32)[axis])).sum()) for axis in (0, 1)]
    wanted = [chosen.start[axis] + chosen.stride[axis] * (4, 1)[axis] for axis in (0, 1)]
    assert center == pytest.approx(wanted, abs=0.1)


def test_values_are_interpolated_between_cells() -> None:
    chosen = dissect(CNNBatchNorm((1, 28, 28), 3).eval(), torch.zeros(1, 1, 28, 28)).deepest
    assert (chosen.size, chosen.start, chosen.stride) == ((5, 5), (5.5, 5.5), (4, 4))
    placed = chosen.place(torch.arange(25.0).view(1, 5, 5), (28, 28))
    assert placed[0, 0, 0] == 0
    assert placed[0, 7, 7] == pytest.approx(24 * 1.5 / 4 / 4, abs=1e-5)  # (1.5/4) cell down and right
    assert placed[0, 27, 27] == 24


@pytest.mark.parametrize(
    ("name", "resize", "layer", "size"),
    [
        ("resnet18", None, "network.layer2", (4, 4)),  # deeper maps of 32 pixels have fewer cells
        ("squeezenet1_1", 128, "network.classifier.2", (7, 7)),
    ],
)
def test_layers_of_torchvision_are_chosen(
    name: str, resize: int | None, layer: str, size: tuple[int, int]
) -> None:
    network = TorchvisionModel((3, 32, 32), 4, name, resize=resize).eval()
    attribution = Attribution(network, torch.zeros(1, 3, 32, 32), "grad_cam")
    assert (attribution.layer.name, attribution.layer.size) == (layer, size)
    assert attribution.attribute(torch.randn(2, 3, 32, 32), torch.tensor([0, 1])).shape == (2, 32, 32)


def test_patch_embedding_is_no_feature_map() -> None:
    images = torch.randn(2, 3, 32, 32)
    windowed = models.SwinTransformer([4, 4], 8, [1, 1], [1, 1], [2, 2], num_classes=4).eval()
    with pytest.raises(InputError, match=r"^method=grad_cam: SwinTransformer has no feature map"):
        Attribution(windowed, images[:1], "grad_cam")
    plain = models.VisionTransformer(32, 8, 2, 2, 8, 8, num_classes=4).eval()  # has a class token
    attribution = Attribution(plain, images[:1])
    assert attribution.method == "attention_rollout"
    assert attribution.attribute(images, torch.tensor([0, 1])).shape == (2, 32, 32)


def test_rollout_equals_the_papers_recursion() -> None:
    torch.manual_seed(3)
    network = ViT((1, 10, 8), 3, patch_size=4, dim=8, depth=3, heads=2).eval()
    images = torch.randn(2, 1, 10, 8)
    anatomy = dissect(network, images)
    weights = attention_weights(network, anatomy.attention, images)
    assert [one.shape for one in weights] == [(2, 6, 6)] * 3  # 3 × 2 patches
    tokens = network.embed(nn.functional.pad(images, network.padding)).flatten(2).transpose(1, 2)
    tokens = tokens + network.position
    flow = torch.eye(6)
    for layer, own in zip(network.blocks.layers, weights, strict=True):
        normed = layer.norm1(tokens)
        direct = layer.self_attn(normed, normed, normed, need_weights=True, average_attn_weights=False)[1]
        torch.testing.assert_close(own, direct.mean(1))
        flow = (0.5 * direct.mean(1) + 0.5 * torch.eye(6)) @ flow
        tokens = layer(tokens)
    found = Attribution(network, images[:1]).attribute(images, torch.tensor([0, 1]))
    shares = flow.mean(1).view(2, 3, 2).detach()  # the network averages its tokens
    wanted = shares - shares.amin((1, 2), keepdim=True)
    torch.testing.assert_close(found, anatomy.patches.place(wanted, (10, 8)))


def test_maps_are_scaled() -> None:
    values = torch.tensor([[[-2.0, 0.0], [1.0, 4.0]], [[-1.0, -3.0], [0.0, -0.5]]])
    assert to_maps(values).tolist() == [[[0, 0], [0.25, 1]], [[0, 0], [0, 0]]]


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.precision=bf16-mixed", "channels_last=true"],
        ["trainer.precision=bf16-true"],
        ["trainer.precision=64-true"],
        ["task.compile=true"],
        ["tta=flip"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_precision_has_the_same_maps(composed: Compose, overrides: list[str]) -> None:
    images = images_of((3, 20, 22))
    words = ("model=resnet", *SMALL["resnet"], *DATA)
    plain = Explainer(untrained_run(composed, *words)).maps(images, targets=2)
    other = Explainer(untrained_run(composed, *words, *overrides)).maps(images, targets=2)
    tolerance = 0.05 if "bf16-true" in overrides[0] else 1e-4
    torch.testing.assert_close(other.maps, plain.maps, atol=tolerance, rtol=0)


def test_wrong_requests_are_errors_of_one_line(composed: Compose) -> None:
    trained = untrained_run(composed, "model=cnn", *DATA)
    with pytest.raises(InputError, match=r"^layer=body.9: no layer with a feature map; choose from body.0"):
        Explainer(trained, "grad_cam", Settings(layer="body.9"))
    with pytest.raises(
        InputError, match=r"^images: wrong shape \(expected \(N, 3, 20, 22\), got \(3, 20, 22\)"
    ):
        Explainer(trained).maps(images_of((3, 20, 22))[0])
    assert Explainer(trained, settings=Settings(layer="body.1")).method == "grad_cam"
    chosen = Explainer(trained, "grad_cam", Settings(layer="body.1")).attribution
    assert chosen.layer.name == "body.1"
    assert "head has weights for each place; method=occlusion" in chosen.caveat
    assert not Explainer(trained, "occlusion").attribution.caveat
    assert Explainer(trained).maps(images_of((3, 20, 22), 0)).maps.shape == (0, 20, 22)
