"""Networks of timm: shape, head, weights from files, blocks, frozen backbone, messages."""

from pathlib import Path

import pytest
import torch
from conftest import Compose
from omegaconf import OmegaConf

from project.config.derived_values import complete
from project.config.instantiate import build
from project.config.validation import find_problems
from project.errors import InputError
from project.modules.networks.timm_model import TimmModel
from project.modules.optim.parameter_groups import parameter_blocks

timm = pytest.importorskip("timm")
GRAY, COLOR = (1, 32, 32), (3, 32, 32)


@pytest.mark.parametrize(
    ("name", "heads", "blocks"),
    [
        ("resnet10t", ["fc"], 8),
        ("vit_tiny_patch16_224", ["head"], 14),
        ("deit_tiny_distilled_patch16_224", ["head", "head_dist"], 15),
        ("convnext_atto", ["head.fc"], 17),
        ("mobilenetv3_small_100", ["classifier"], 15),
    ],
)
@pytest.mark.parametrize("shape", [GRAY, COLOR])
def test_networks_take_the_channels_and_size_of_the_images(
    name: str, heads: list[str], blocks: int, shape: tuple[int, int, int]
) -> None:
    network = TimmModel(shape, 5, name)
    assert network(torch.zeros(2, *shape)).shape == (2, 5)
    assert list(network.head_names) == heads
    assert len(parameter_blocks(network)) == blocks
    names = {id(parameter): key for key, parameter in network.named_parameters()}
    last = [names[id(parameter)] for parameter in parameter_blocks(network)[-1]]
    assert f"network.{heads[-1]}.weight" in last


def test_the_network_is_timms_own() -> None:
    torch.manual_seed(0)
    network = TimmModel(COLOR, 5, "resnet10t").eval()
    torch.manual_seed(0)
    expected = timm.create_model("resnet10t", num_classes=5).eval()
    images = torch.rand(2, *COLOR)
    assert torch.equal(network(images), expected(images))


def test_networks_of_a_fixed_size_are_built_for_resize() -> None:
    network = TimmModel((3, 20, 30), 5, "vit_tiny_patch16_224", resize=64)
    assert network(torch.zeros(2, 3, 20, 30)).shape == (2, 5)
    assert network.network.patch_embed.img_size == (64, 64)


@pytest.mark.parametrize("kind", ["torch", "safetensors", "run"])
def test_weights_of_color_images_load_for_gray_ones(kind: str, tmp_path: Path) -> None:
    source = timm.create_model("resnet10t", num_classes=7).state_dict()
    file = tmp_path / ("model.safetensors" if kind == "safetensors" else "weights.ckpt")
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file(source, file)
    else:
        wrapped = {f"network.network.{key}": value for key, value in source.items()}
        torch.save({"state_dict": wrapped} if kind == "run" else source, file)
    color = TimmModel(COLOR, 5, "resnet10t", weights=str(file)).network.state_dict()
    gray = TimmModel(GRAY, 5, "resnet10t", weights=str(file)).network.state_dict()
    for key, value in source.items():
        if not key.startswith("fc."):
            assert torch.equal(color[key], value)
    torch.testing.assert_close(gray["conv1.0.weight"], source["conv1.0.weight"].sum(dim=1, keepdim=True))
    assert torch.equal(gray["layer1.0.conv1.weight"], source["layer1.0.conv1.weight"])


def test_a_frozen_backbone_trains_the_head_alone(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), file)
    network = TimmModel(COLOR, 5, "resnet10t", weights=str(file), freeze=True).train()
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert trained == ["network.fc.weight", "network.fc.bias"]
    assert not network.network.bn1.training
    assert network.network.fc.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "resnet19"},
            r"^model\.name=resnet19: not a classification model of timm; did you mean resn",
        ),
        ({"name": "resnet18.a9_in1k"}, r"^model\.name=resnet18\.a9_in1k: not .*resnet18\.a1_in1k"),
        ({"name": "hf-hub:timm/resnet18"}, r"not a classification model of timm"),
        ({"freeze": True}, r"^model\.freeze=true: needs pretrained weights"),
        (
            {"weights": "a1_in1k"},
            r"^model\.weights=a1_in1k: choose DEFAULT, null, or a file; .*resnet18\.TAG",
        ),
        ({"weights": "gone.pth"}, r"^model\.weights=gone\.pth: no such file"),
        (
            {"name": "resnet10t", "weights": "https://example.org/a.pth"},
            r"is a URL; download the file first",
        ),
        ({"name": "swin_tiny_patch4_window7_224"}, r"does not accept|cannot be built .*model\.resize=224"),
    ],
)
def test_mistakes_are_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        TimmModel((3, 3, 3), 5, **options)
    assert "\n" not in str(raised.value)


def test_weights_that_cannot_be_downloaded_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: object) -> object:
        if pretrained:
            raise OSError("no network")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        InputError, match=r"cannot download .*no network.*timm/resnet18\.a1_in1k/resolve/main/"
    ):
        TimmModel(COLOR, 5, weights="DEFAULT")


def test_functions_of_timm_are_networks(composer: Compose) -> None:
    words = ["model._target_=timm.create_model", "+model.model_name=resnet10t", "data=cifar10"]
    config = composer(*words)
    complete(config)
    assert list(find_problems(config)) == []
    assert set(config.model) == {"_target_", "model_name", "num_classes"}
    network = build({"model": OmegaConf.to_container(config.model, resolve=True)}, "model")
    assert network(torch.zeros(2, *COLOR)).shape == (2, 10)
    (line,) = find_problems(composer("model._target_=timm.create_modle", "+model.model_name=resnet10t"))
    assert "did you mean timm.create_model" in line
