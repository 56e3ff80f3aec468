"""Tests of fine-tuning: layerwise learning rates, frozen backbone, weights from files."""

import logging
from functools import partial
from pathlib import Path

import pytest
import torch
from small_training import make_data, make_trainer
from torch import nn
from torchvision import models

from project.callbacks.checkpointing import BestCheckpoint
from project.callbacks.ema import EMA
from project.callbacks.freeze import FreezeBackbone
from project.errors import InputError
from project.modules.classifier import ImageClassifier
from project.modules.losses import CrossEntropy
from project.modules.networks.mlp import MLP
from project.modules.networks.resnet import ResNet
from project.modules.networks.torchvision_model import TorchvisionModel, find_head_layer
from project.modules.networks.vit import ViT
from project.modules.optim import schedules
from project.modules.optim.parameter_groups import parameter_blocks, parameter_groups, scale_learning_rates
from project.training.ddp.launch import run_ranks


def names(network: nn.Module) -> list[list[str]]:
    by_id = {id(parameter): name for name, parameter in network.named_parameters()}
    return [[by_id[id(parameter)] for parameter in block] for block in parameter_blocks(network)]


FAMILIES = {
    "resnet18": ("conv1.weight", "layer1.0.conv1.weight", 10),
    "vgg11_bn": ("features.0.weight", "features.4.weight", 11),
    "mobilenet_v3_small": ("features.0.0.weight", "features.1.block.0.0.weight", 15),
    "efficientnet_b0": ("features.0.0.weight", "features.1.0.block.0.0.weight", 19),
    "convnext_tiny": ("features.0.0.weight", "features.1.0.layer_scale", 23),
    "vit_b_16": ("class_token", "encoder.layers.encoder_layer_0.ln_1.weight", 14),
    "swin_t": ("features.0.0.weight", "features.1.0.norm1.weight", 17),
    "densenet121": ("features.conv0.weight", "features.denseblock1.denselayer1.norm1.weight", 9),
    "squeezenet1_1": ("features.0.weight", "features.3.squeeze.weight", 10),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_parameter_blocks_are_ordered_from_input_to_head(name: str) -> None:
    with torch.device("meta"):
        network = models.get_model(name)
    found = names(network)
    first, second, count = FAMILIES[name]
    assert (found[0][0], found[1][0], len(found)) == (first, second, count)
    assert sorted(entry for block in found for entry in block) == sorted(
        name for name, _ in network.named_parameters()
    )
    head = find_head_layer(network)[0]
    assert all(entry.startswith(f"{head}.") for entry in found[-1])


def test_parameter_blocks_of_own_networks() -> None:
    assert [block[0] for block in names(ViT((1, 8, 8), 3, dim=8, heads=2, depth=2))] == [
        *("position", "blocks.layers.0.self_attn.in_proj_weight"),
        *("blocks.layers.1.self_attn.in_proj_weight", "head.weight"),
    ]
    found = names(ResNet((1, 8, 8), 3, depth=8, width=4))
    assert found[0] == ["body.0.weight", "body.1.weight", "body.1.bias"]
    assert [block[0] for block in found[1:]] == [
        *(f"body.{number}.conv1.weight" for number in (3, 4, 5)),
        "head.weight",
    ]


def test_layerwise_lr_decay_applies_under_any_schedule() -> None:
    network = MLP((1, 8, 8), 3, widths=[5, 5])
    groups = parameter_groups(network, weight_decay_norm_bias=False, layerwise_lr_decay=0.5)
    optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.2)
    scale_learning_rates(optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0] * 3
    last = list(network.parameters())[-2:]
    assert [id(group["params"][0]) for group in groups[:2]] == [id(parameter) for parameter in last]
    schedule = schedules.cosine(optimizer, schedules.TrainingLength(10, 10), final_lr=0.02)["scheduler"]
    optimizer.step()
    for _ in range(10):
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups[::2]] == pytest.approx([0.02, 0.01, 0.005])


def test_layerwise_lr_decay_that_underflows_is_rejected() -> None:
    network = MLP((1, 8, 8), 3, widths=[4] * 29)
    for lost in (0.01, 0.001, 1e-20):  # the last underflows in any precision
        with pytest.raises(
            InputError,
            match=rf"^optim\.layerwise_lr_decay={lost}: .* first of 30 blocks .* set at least 0\.05, or",
        ):
            parameter_groups(network, weight_decay_norm_bias=True, layerwise_lr_decay=lost)
    groups = parameter_groups(network, weight_decay_norm_bias=True, layerwise_lr_decay=0.05)
    assert min(group["lr_scale"] for group in groups) * torch.ones(()) > 0


def test_zero_learning_rate_stays_zero(tmp_path: Path) -> None:
    still = partial(torch.optim.SGD, lr=0.0)
    module = ImageClassifier(MLP((1, 8, 8), 3, widths=[]), CrossEntropy(3), still, schedules.cosine)
    before = [parameter.clone() for parameter in module.parameters()]
    trainer = make_trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    trainer.fit(module, make_data())
    assert trainer.lr_scheduler_configs[0].scheduler.get_last_lr() == [0.0]
    assert same(before, list(module.parameters()))


def make_transfer(seed: int = 0, **options) -> ImageClassifier:
    torch.manual_seed(seed)
    return ImageClassifier(
        ResNet((1, 8, 8), 3, depth=8, width=4),
        CrossEntropy(3),
        partial(torch.optim.AdamW, lr=0.01),
        schedules.onecycle,
        layerwise_lr_decay=0.5,
        weight_decay_norm_bias=False,
        **options,
    )


def body_and_head(module: ImageClassifier) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    state = {name: value.clone() for name, value in module.network.state_dict().items()}
    body = [value for name, value in state.items() if not name.startswith("head.")]
    return body, [state["head.weight"], state["head.bias"]]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_backbone_is_frozen_in_the_first_epochs(tmp_path: Path) -> None:
    module = make_transfer()
    seen = []

    class Look(FreezeBackbone):
        def on_validation_end(self, trainer, pl_module) -> None:
            seen.append(body_and_head(pl_module))

    before = body_and_head(module)
    trainer = make_trainer(tmp_path, [Look(2)], max_epochs=3, enable_checkpointing=False)
    trainer.fit(module, make_data())
    assert same(seen[0][0], before[0])  # including batch norm statistics
    assert same(seen[1][0], before[0])
    assert not same(seen[0][1], before[1])
    assert not any(same([one], [other]) for one, other in zip(seen[2][0], before[0], strict=True))
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert trainer.global_step == trainer.lr_scheduler_configs[0].scheduler.total_steps - 1


def test_network_without_backbone_trains_unchanged_and_logs_it_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "project")
    modules = []
    for callbacks in ([FreezeBackbone(2)], []):
        torch.manual_seed(0)
        network = MLP((1, 8, 8), 3, widths=[])
        modules.append(ImageClassifier(network, CrossEntropy(3), torch.optim.SGD, schedules.constant))
        trainer = make_trainer(tmp_path, callbacks, max_epochs=3, enable_checkpointing=False)
        trainer.fit(modules[-1], make_data())
    lines = [line for line in caplog.messages if "head" in line or "everything" in line]
    (line,) = lines
    assert line.startswith("callbacks.freeze_backbone.epochs=2: no effect")
    assert same(*([*module.network.parameters()] for module in modules))


def test_layers_without_parameters_freeze_with_the_layer_after_them() -> None:
    features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    wide = nn.Sequential(nn.Dropout(), nn.Linear(144, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))
    network = nn.Sequential(features, nn.Flatten(), wide)
    freeze = FreezeBackbone(1)
    freeze._freeze(network)
    dropouts = [part.training for part in network.modules() if isinstance(part, nn.Dropout)]
    assert dropouts == [False, True], "the second dropout directly precedes the head"
    assert not any(part.training for part in features.modules())
    freeze._unfreeze()
    assert all(part.training for part in network.modules())


@pytest.mark.parametrize("stop", [5, 7, 11])  # within the frozen epoch, at its end, within the next
def test_resumed_fine_tuning_equals_an_uninterrupted_run(tmp_path: Path, stop: int) -> None:
    def fit(folder: Path, max_steps: int, ckpt_path: Path | None = None) -> ImageClassifier:
        keep = BestCheckpoint(
            folder, "{step}", every_n_train_steps=stop, save_top_k=-1, auto_insert_metric_name=False
        )
        module = make_transfer(seed=0 if ckpt_path is None else 1)
        callbacks = [FreezeBackbone(1), EMA(0.9), keep]
        trainer = make_trainer(tmp_path, callbacks, max_epochs=3, gradient_clip_val=1.0)
        trainer.fit(module, make_data(), ckpt_path=ckpt_path, weights_only=True)
        return module

    whole = fit(tmp_path / "whole", -1)
    rest = fit(tmp_path / "rest", -1, ckpt_path=tmp_path / "whole" / f"{stop}.ckpt")
    for one, other in zip(body_and_head(whole), body_and_head(rest), strict=True):
        assert same(one, other)


@pytest.mark.filterwarnings("ignore:Found 9 module")
def test_frozen_backbone_on_two_ranks_equals_one_process(tmp_path: Path) -> None:
    def fit(devices: int) -> None:
        torch.set_num_threads(1)
        module = make_transfer()
        options = {"strategy": "ddp", "devices": devices, "use_distributed_sampler": False}
        trainer = make_trainer(
            tmp_path,
            [FreezeBackbone(1)],
            max_epochs=2,
            enable_checkpointing=False,
            limit_val_batches=0,
            **(options if devices > 1 else {}),
        )
        network = module.network
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()  # batch norm statistics differ between ranks
        trainer.fit(module, make_data())
        torch.save(network.state_dict(), tmp_path / f"{devices}_{trainer.global_rank}.pt")

    fit(1)
    run_ranks(lambda: fit(2), 2)
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1_0", "2_0", "2_1"))
    for name in alone:
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], alone[name], rtol=1e-3, atol=1e-4)


def test_weights_load_from_files_with_another_number_of_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = models.get_model("squeezenet1_1", num_classes=7).state_dict()
    wrapped = {f"network.network.{name}": value for name, value in source.items()}
    torch.save(source, tmp_path / "plain.pth")
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "run.ckpt")
    for name in ("plain.pth", "run.ckpt"):
        network = TorchvisionModel((3, 32, 32), 5, "squeezenet1_1", weights=str(tmp_path / name)).network
        loaded = network.state_dict()
        assert all(
            torch.equal(loaded[name], source[name]) for name in source if not name.startswith("classifier")
        )
        assert loaded["classifier.1.weight"].shape[0] == 5


def test_weights_of_another_network_are_rejected(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"

    def refused(saved: object, message: str, name: str = "squeezenet1_1") -> None:
        torch.save(saved, file)
        with pytest.raises(InputError, match=message) as raised:
            TorchvisionModel((3, 32, 32), 5, name, weights=str(file))
        assert "\n" not in str(raised.value)

    state = models.get_model("squeezenet1_1").state_dict()
    lacks = r"not the weights of model\.name=resnet18; the file lacks conv1\.weight and \d+ more"
    refused(state, lacks, "resnet18")
    refused({"epoch": 3}, r"holds no state_dict")
    state["features.0.weight"] = state["features.0.weight"][:, :1]
    refused(state, r"has another shape of features\.0\.weight: \[64, 1, 3, 3\] for \[64, 3, 3, 3\]")
    state.pop("features.0.weight")
    refused(state, r"the file lacks features\.0\.weight; set model\.name")
    file.write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"cannot be read as a state_dict"):
        TorchvisionModel((3, 32, 32), 5, "squeezenet1_1", weights=str(file))
    with pytest.raises(InputError, match=r"is a URL; download the file first"):
        TorchvisionModel((3, 32, 32), 5, "squeezenet1_1", weights="https://example.org/weights.pth")
