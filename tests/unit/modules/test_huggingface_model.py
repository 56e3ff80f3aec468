"""Image classifiers of transformers from a folder that `save_pretrained` wrote."""

from pathlib import Path

import pytest
import torch

from project.errors import InputError
from project.modules.networks.huggingface_model import HuggingFaceModel
from project.modules.optim.parameter_groups import parameter_blocks

transformers = pytest.importorskip("transformers")
SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT with random weights and three classes."""
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8,
        patch_size=4, num_labels=3,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(path)
    return path


def test_logits_are_those_of_the_library(folder: Path) -> None:
    network = HuggingFaceModel(SHAPE, 3, str(folder)).eval()
    expected = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    images = torch.rand(2, *SHAPE)
    torch.testing.assert_close(network(images), expected(images).logits)
    gray = images[:, :1]
    torch.testing.assert_close(network(gray), expected(gray.expand(-1, 3, -1, -1)).logits)


def test_the_head_fits_the_classes_and_the_backbone_freezes(folder: Path) -> None:
    network = HuggingFaceModel(SHAPE, 5, str(folder), freeze=True)
    assert network(torch.zeros(2, *SHAPE)).shape == (2, 5)
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert trained == ["network.classifier.weight", "network.classifier.bias"]
    assert len(parameter_blocks(network)) == 4  # embeddings, two layers, head


def test_other_sizes_are_resized_and_random_weights_differ(folder: Path) -> None:
    assert HuggingFaceModel((3, 12, 12), 3, str(folder), resize=8)(torch.zeros(2, 3, 12, 12)).shape == (2, 3)
    with pytest.raises(InputError, match=r"does not accept images of \[3, 12, 12\].*model\.resize"):
        HuggingFaceModel((3, 12, 12), 3, str(folder))
    images = torch.rand(2, *SHAPE)
    saved, random = (HuggingFaceModel(SHAPE, 3, str(folder), weights).eval() for weights in ("DEFAULT", None))
    assert not torch.allclose(saved(images), random(images))


def test_a_folder_without_a_network_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no folder with a config\.json"):
        HuggingFaceModel(SHAPE, 3, str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds no image classifier") as raised:
        HuggingFaceModel(SHAPE, 3, str(tmp_path))
    assert "\n" not in str(raised.value)
