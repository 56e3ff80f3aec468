"""Tests that networks match the architectures in their docstrings."""

import pytest
import torch
from torch import nn

from project.errors import InputError
from project.modules.networks.cnn import CNN3x3, CNN5x5, CNNBatchNorm, LeNet
from project.modules.networks.mlp import MLP
from project.modules.networks.resnet import ResNet
from project.modules.networks.rnn import RowLSTM
from project.modules.networks.torchvision_model import TorchvisionModel
from project.modules.networks.vit import ViT

MNIST = (1, 28, 28)
CIFAR = (3, 32, 32)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (MLP(MNIST, 10), 784 * 128 + 128 + 128 * 10 + 10),
        (CNN3x3(MNIST, 10), 1_199_882),  # as PyTorch's MNIST example
        (LeNet(CIFAR, 10), 62_006),  # as PyTorch's CIFAR-10 tutorial
        (CNN5x5(MNIST, 10), 21_840),
        (CNNBatchNorm(MNIST, 10), 25 * 16 + 9 * (16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 9 * 64 * 10 + 10),
        (ResNet(CIFAR, 10, depth=20), 272_474),  # the paper's 0.27 M, plus projection shortcuts
        (ResNet(CIFAR, 10, depth=18, width=64), 11_173_962),
    ],
)
def test_parameter_counts(network: nn.Module, expected: int) -> None:
    assert parameters(network) == expected


def test_cnn_has_9216_inputs_to_its_first_linear_layer() -> None:
    first = next(layer for layer in CNN3x3(MNIST, 10).head if isinstance(layer, nn.Linear))
    assert first.in_features == 9216


def test_mlp_with_identity_activation_is_linear() -> None:
    network = MLP(MNIST, 10, widths=[16, 8], activation="identity").eval()
    images = torch.randn(2, *MNIST)
    zero = network(torch.zeros(1, *MNIST))
    summed = network(images[:1] + images[1:]) + zero
    torch.testing.assert_close(summed, network(images[:1]) + network(images[1:]), rtol=1e-4, atol=1e-5)


def test_mlp_without_hidden_layers_is_a_linear_classifier() -> None:
    assert parameters(MLP(MNIST, 10, widths=[])) == 784 * 10 + 10


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 33, 30), (4, 9, 50)])
def test_networks_accept_any_image_shape(shape: tuple[int, int, int]) -> None:
    networks = [MLP(shape, 7), RowLSTM(shape, 7, layers=2), ViT(shape, 7, depth=1), ResNet(shape, 7, depth=8)]
    for network in networks:
        assert network(torch.randn(2, *shape)).shape == (2, 7)


def test_vit_uses_every_pixel_of_images_that_need_padding() -> None:
    network = ViT((1, 9, 10), 3, patch_size=4, depth=1)
    images = torch.randn(1, 1, 9, 10, requires_grad=True)
    network(images).sum().backward()
    assert (images.grad.abs() > 0).all()


def test_same_seed_gives_the_same_initial_weights() -> None:
    torch.manual_seed(3)
    first = CNN3x3(MNIST, 10)
    torch.manual_seed(3)
    second = CNN3x3(MNIST, 10)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.training


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_torchvision_networks_get_a_new_head(name: str) -> None:
    network = TorchvisionModel((1, 32, 32), 5, name=name)
    assert network(torch.randn(2, 1, 32, 32)).shape == (2, 5)


def test_freeze_trains_only_the_head_and_keeps_statistics(tmp_path) -> None:
    from torchvision.models import resnet18

    torch.save(resnet18().state_dict(), tmp_path / "weights.pth")
    network = TorchvisionModel((3, 32, 32), 5, weights=str(tmp_path / "weights.pth"), freeze=True)
    trainable = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert trainable == ["network.fc.weight", "network.fc.bias"]
    statistics = network.network.bn1.running_mean.clone()
    network.train()(torch.randn(8, 3, 32, 32))
    assert torch.equal(network.network.bn1.running_mean, statistics)


def test_torchvision_model_resizes_small_images() -> None:
    with pytest.raises(InputError, match=r"model\.name=alexnet: does not accept images.*model\.resize=224"):
        TorchvisionModel((3, 32, 32), 5, name="alexnet")
    network = TorchvisionModel((3, 32, 32), 5, name="alexnet", resize=64)
    assert network(torch.randn(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLP(MNIST, 10, activation="rellu"), r"model\.activation=rellu: choose from relu"),
        (
            lambda: CNNBatchNorm(MNIST, 10, channels=[8, 8]),
            r"model\.channels=\[8, 8\]: expected three values",
        ),
        (lambda: LeNet((1, 8, 8), 10), r"data\.input_shape=\[1, 8, 8\]: too small"),
        (lambda: ResNet(CIFAR, 10, depth=19), r"model\.depth=19: choose 10, 18, 34"),
        (lambda: ViT(MNIST, 10, dim=30, heads=4), r"model\.heads=4: must divide model\.dim=30"),
        (
            lambda: TorchvisionModel(CIFAR, 10, name="resnet19"),
            r"model\.name=resnet19.*did you mean resnet18",
        ),
        (lambda: TorchvisionModel(CIFAR, 10, freeze=True), r"model\.freeze=true: needs pretrained weights"),
        (lambda: TorchvisionModel(CIFAR, 10, weights="NONE_SUCH"), r"model\.weights=NONE_SUCH: choose from"),
        (lambda: TorchvisionModel(CIFAR, 10, weights="gone.pth"), r"model\.weights=gone\.pth: no such file"),
    ],
)
def test_invalid_arguments_are_rejected(build, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        build()
    assert "\n" not in str(raised.value)
