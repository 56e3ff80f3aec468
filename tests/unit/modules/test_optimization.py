"""Tests of optimizers, schedules, losses and metrics."""

import copy
import math

import pytest
import torch
from torch import nn

from project.errors import InputError
from project.modules.losses import CrossEntropy, OneHotMSE
from project.modules.metrics import LossAndAccuracy
from project.modules.networks.cnn import CNN3x3
from project.modules.networks.mlp import MLP
from project.modules.networks.resnet import ResNet
from project.modules.optim import schedules
from project.modules.optim.muon import Muon
from project.modules.optim.parameter_groups import parameter_groups
from project.modules.optim.training_length import TrainingLength


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    draws = torch.Generator().manual_seed(0)
    for _ in range(steps):
        images = torch.randn(8, 1, 12, 12, generator=draws)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network.eval()(images), torch.arange(8) % 3).backward()
        optimizer.step()


def weights(network: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def test_muon_equals_torch_muon_on_matrices_and_adamw_elsewhere() -> None:
    ours = CNN3x3((1, 12, 12), 3)
    theirs = copy.deepcopy(ours)
    options = {"lr": 0.01, "weight_decay": 0.1}
    matrices = [parameter for parameter in theirs.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in theirs.parameters() if parameter.ndim != 2]
    muon = torch.optim.Muon(matrices, momentum=0.9, adjust_lr_fn="match_rms_adamw", **options)
    adamw = torch.optim.AdamW(others, betas=(0.8, 0.9), **options)

    class Both:
        def zero_grad(self) -> None:
            muon.zero_grad()
            adamw.zero_grad()

        def step(self) -> None:
            muon.step()
            adamw.step()

    train(ours, Muon(ours.parameters(), momentum=0.9, betas=(0.8, 0.9), **options), 4)
    train(theirs, Both(), 4)  # type: ignore[arg-type]
    for mine, reference in zip(weights(ours), weights(theirs), strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=0)


def test_muon_restores_its_state_and_follows_a_schedule() -> None:
    uninterrupted_rates, resumed = CNN3x3((1, 12, 12), 3), CNN3x3((1, 12, 12), 3)
    resumed.load_state_dict(uninterrupted_rates.state_dict())
    optimizer = Muon(uninterrupted_rates.parameters(), lr=0.01)
    train(uninterrupted_rates, optimizer, 3)
    resumed.load_state_dict(uninterrupted_rates.state_dict())
    other = Muon(resumed.parameters(), lr=0.5)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group in (*optimizer.param_groups, *other.param_groups):
        group["lr"] = 0.002
    train(uninterrupted_rates, optimizer, 2)
    train(resumed, other, 2)
    for mine, reference in zip(weights(resumed), weights(uninterrupted_rates), strict=True):
        assert torch.equal(mine, reference)


def test_weight_decay_norm_bias_false_excludes_norms_and_biases() -> None:
    network = ResNet((3, 16, 16), 5, depth=8)
    decayed, free = parameter_groups(network, weight_decay_norm_bias=False)
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in free["params"])
    assert free["weight_decay"] == 0
    assert "weight_decay" not in decayed
    assert len(decayed["params"]) + len(free["params"]) == len(list(network.parameters()))
    assert len(parameter_groups(network, weight_decay_norm_bias=True)) == 1


def test_frozen_parameters_are_not_optimized() -> None:
    network = MLP((1, 4, 4), 3)
    network.layers[1].weight.requires_grad_(False)
    (group,) = parameter_groups(network, weight_decay_norm_bias=True)
    assert len(group["params"]) == 3


def rates(make, steps: int, length: TrainingLength, **options) -> list[float]:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = make(optimizer, length, **options)["scheduler"]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_schedules_follow_their_formulas() -> None:
    length = TrainingLength(steps=100, steps_per_epoch=10)
    assert rates(schedules.constant, 5, length) == [1.0] * 5
    assert rates(schedules.step, 5, length, step_size=2, gamma=0.5) == [1, 1, 0.5, 0.5, 0.25]
    assert rates(schedules.exponential, 3, length, gamma=0.5) == [1, 0.5, 0.25]
    expected = [1.0] * 5 + [0.1] * 3 + [0.01] * 2
    assert rates(schedules.multistep, 10, length, milestones=[0.5, 8], gamma=0.1) == pytest.approx(expected)
    cosine = rates(schedules.cosine, 100, length, final_lr=0.0)
    assert cosine == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 100)) for step in range(100)])
    cycle = rates(schedules.onecycle, 100, length, warmup=0.3, div_factor=10, final_div_factor=100)
    assert cycle[0] == pytest.approx(0.1)
    assert max(cycle) == pytest.approx(1, abs=0.01)
    assert 28 <= cycle.index(max(cycle)) <= 31
    assert cycle[-1] < 0.01
    warm = rates(schedules.warmup_cosine, 100, length, warmup=0.1)
    assert warm[:11] == pytest.approx([(step + 1) / 11 for step in range(10)] + [1.0])
    assert warm[-1] < 0.001


def test_plateau_lowers_the_lr_after_its_patience() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    entry = schedules.plateau(
        optimizer, TrainingLength(10, 1), monitor="val/acc", mode="max", factor=0.5, patience=1, frequency=2
    )
    assert (entry["monitor"], entry["interval"], entry["frequency"]) == ("val/acc", "epoch", 2)
    for value in (0.5, 0.6, 0.6, 0.6):
        entry["scheduler"].step(value)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_schedules_that_need_a_length_reject_unlimited_training() -> None:
    with pytest.raises(InputError, match=r"trainer\.max_epochs=-1: this schedule needs a known length"):
        rates(schedules.cosine, 1, TrainingLength(math.inf, 10))
    with pytest.raises(InputError, match=r"scheduler\.interval=epochs: choose from step, epoch"):
        rates(schedules.cosine, 1, TrainingLength(10, 10), interval="epochs")


def test_losses_accept_labels_and_probabilities() -> None:
    logits = torch.randn(6, 4)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    one_hot = nn.functional.one_hot(labels, 4).float()
    for loss in (CrossEntropy(4, label_smoothing=0.1), OneHotMSE(4)):
        torch.testing.assert_close(loss(logits, labels), loss(logits, one_hot))
    torch.testing.assert_close(OneHotMSE(4)(logits, labels), (logits - one_hot).square().mean())
    weighted = CrossEntropy(4, class_weights=[1, 0, 0, 0])
    torch.testing.assert_close(
        weighted(logits, labels), nn.functional.cross_entropy(logits[[0, 4]], labels[[0, 4]])
    )


def test_wrong_number_of_class_weights_is_rejected() -> None:
    with pytest.raises(InputError, match=r"loss\.class_weights=\[1, 2\]: 2 weights for data\.num_classes=3"):
        CrossEntropy(3, class_weights=[1, 2])


def test_metrics_are_means_over_images_not_batches() -> None:
    metric = LossAndAccuracy()
    assert metric.is_empty
    metric.append(torch.tensor(1.0), torch.eye(3), torch.tensor([0, 1, 2]))
    assert not metric.is_empty
    metric.append(torch.tensor(5.0), torch.eye(3)[:1], torch.tensor([2]))
    assert metric.read() == {"loss": 2.0, "acc": 0.75, "images": 4, "weight": 4}
    assert metric.is_empty
    metric.append(torch.tensor(1.0), torch.eye(3), torch.eye(3))
    assert metric.read()["acc"] == 1


def test_metrics_buffer_a_limited_number_of_batches() -> None:
    metric = LossAndAccuracy()
    for number in range(200):
        metric.append(torch.tensor(float(number)), torch.eye(3), torch.tensor([0, 0, 0]))
        assert len(metric._buffer) <= 64
    assert metric.read() == {"loss": 99.5, "acc": pytest.approx(1 / 3), "images": 600, "weight": 600}
    metric.append(torch.tensor(1.0), torch.zeros(2, 2**21), torch.tensor([0, 1]))
    metric.append(torch.tensor(1.0), torch.zeros(2, 2**21), torch.tensor([0, 1]))
    assert len(metric._buffer) == 1
