"""Tests of changes of values during training, by states that are loaded into another configuration."""

from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from project.config.validation.changes import explain_lost_change


def config(**changed: Any) -> DictConfig:
    """Return a composed configuration; a name such as `loss_class_weights` changes a value of a group."""
    values: dict[str, dict[str, Any]] = {
        "task": {
            "_target_": "project.modules.classifier.ImageClassifier",
            "network": "${model}",
            "loss": "${loss}",
            "optimizer": "${optim}",
        },
        "model": {"_target_": "project.modules.networks.mlp.MLP", "input_shape": [1, 4, 4], "num_classes": 3},
        "loss": {"_target_": "project.modules.losses.CrossEntropy", "num_classes": 3},
        "optim": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.1},
    }
    for name, value in changed.items():
        group, _, key = name.partition("_")
        values[group][key] = value
    return OmegaConf.create(values)


RMSPROP = {"optim__target_": "torch.optim.RMSprop"}


@pytest.mark.parametrize(
    ("before", "now", "reason"),
    [
        ({}, {"optim_lr": 0.2, "optim_weight_decay": 0.1}, ""),
        ({}, {"loss_label_smoothing": 0.1}, ""),
        ({"model_dropout": 0.2}, {"model_dropout": 0.1}, ""),
        ({"model_dropout": 0.0}, {"model_dropout": 0.1}, "the saved weights belong to another network: "),
        ({}, {"model_widths": [7]}, "the saved weights belong to another network: "),
        (
            {"loss_class_weights": [1, 1, 1]},
            {"loss_class_weights": [1, 1, 2]},
            "loss.weight is part of a checkpoint, whose value would replace the new one",
        ),
        ({}, {"optim_amsgrad": True}, "its optimizer cannot continue from the saved state (KeyError"),
        ({"optim_amsgrad": True}, {}, "its optimizer cannot continue from the saved state (KeyError"),
        (RMSPROP, RMSPROP | {"optim_momentum": 0.9}, "its optimizer cannot continue from the saved state"),
        (RMSPROP | {"optim_momentum": 0.5}, RMSPROP | {"optim_momentum": 0.9}, ""),
    ],
)
def test_changes_without_effect_are_explained(
    before: dict[str, Any], now: dict[str, Any], reason: str
) -> None:
    found = explain_lost_change(config(**before), config(**now))
    assert found.startswith(reason) if reason else not found
