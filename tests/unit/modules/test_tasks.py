"""Multi-label classification and regression: metrics, losses and weights against scikit-learn and torch."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score
from sklearn.utils.class_weight import compute_class_weight
from small_training import make_trainer
from torch import Tensor, nn
from torch.nn import functional as F

from project.datamodules.base import Split
from project.datamodules.image_base import ImageDataModule
from project.errors import InputError
from project.modules.classifier import ImageClassifier
from project.modules.losses import BinaryCrossEntropy, CrossEntropy
from project.modules.multilabel import MultilabelClassifier
from project.modules.regression import Regressor
from project.modules.supervised import SupervisedModule
from project.runtime.seeding import generator

SIZES = {"train": 90, "test": 57}


class Patterns(ImageDataModule):
    """Noise images, with targets that depend on the brightness of their quarters."""

    def __init__(self, target_type: Any, num_classes: int, **base: Any) -> None:
        options = {"input_shape": (1, 8, 8), "val_size": 20, "batch_size": 16, "eval_batch_size": 13} | base
        super().__init__(name="patterns", target_type=target_type, num_classes=num_classes, **options)

    def load_split(self, split: Split) -> tuple[Tensor, Tensor] | None:
        if split == "val":
            return None
        draws = generator(0, 1 if split == "train" else 2)
        shares = torch.rand(SIZES[split], 4, generator=draws)
        levels = (shares * 255).view(-1, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
        images = levels.to(torch.uint8)
        if self.target_type == "class":
            return images, (shares[:, 0] > 0.8).long() + (shares[:, 0] > 0.95).long()
        if self.target_type == "multilabel":
            return images, (shares[:, : self.num_classes] > 0.6).long()
        values = 300 + 50 * shares[:, : self.num_classes]
        return images, values[:, 0] if self.num_classes == 1 else values


def network(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, outputs))


SGD = partial(torch.optim.SGD, lr=0.05)


def fit_and_test(module: SupervisedModule, data: ImageDataModule, folder: Path) -> dict[str, float]:
    trainer = make_trainer(folder, enable_checkpointing=False)
    trainer.fit(module, data)
    metrics = dict(trainer.callback_metrics)
    trainer.test(module, data, verbose=False)
    return {name: float(value) for name, value in (metrics | trainer.callback_metrics).items()}


def outputs_of(module: SupervisedModule, data: ImageDataModule, split: Split) -> tuple[Any, Any]:
    """Return outputs and targets of a split as arrays."""
    with torch.no_grad():
        parts = [(module.eval()(images), targets) for images, targets in data.evaluation_loader(split)]
    outputs, targets = map(torch.cat, zip(*parts, strict=True))
    return outputs.numpy(), targets.numpy()


def test_multilabel_metrics_equal_those_of_scikit_learn(tmp_path: Path) -> None:
    data = Patterns("multilabel", 3)
    module = MultilabelClassifier(network(3), BinaryCrossEntropy(3), SGD, num_labels=3, threshold=0.4)
    metrics = fit_and_test(module, data, tmp_path)
    for split in ("val", "test"):
        logits, targets = outputs_of(module, data, split)
        probabilities = 1 / (1 + np.exp(-logits))
        assert metrics[f"{split}/map"] == pytest.approx(
            average_precision_score(targets, probabilities, average="macro"), abs=1e-6
        )
        assert metrics[f"{split}/f1"] == pytest.approx(
            f1_score(targets, probabilities > 0.4, average="macro", zero_division=0), abs=1e-6
        )
        loss = F.binary_cross_entropy_with_logits(torch.tensor(logits), torch.tensor(targets))
        assert metrics[f"{split}/loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("num_targets", [1, 3])
@pytest.mark.parametrize("standardize", [True, False])
def test_regression_metrics_equal_those_of_scikit_learn(
    tmp_path: Path, num_targets: int, standardize: bool
) -> None:
    data = Patterns("real", num_targets)
    optimizer = SGD if standardize else partial(torch.optim.SGD, lr=1e-4)
    module = Regressor(
        network(num_targets), nn.MSELoss(), optimizer, num_targets=num_targets, standardize=standardize
    )
    metrics = fit_and_test(module, data, tmp_path)
    for split in ("val", "test"):
        values, targets = outputs_of(module, data, split)
        targets = targets.reshape(len(targets), -1)
        assert metrics[f"{split}/mae"] == pytest.approx(mean_absolute_error(targets, values), rel=1e-5)
        assert metrics[f"{split}/r2"] == pytest.approx(r2_score(targets, values), rel=1e-3, abs=1e-4)
    train = data.targets("train").numpy().reshape(-1, num_targets)
    if standardize:
        np.testing.assert_allclose(module.target_mean, train.mean(0), rtol=1e-5)
        np.testing.assert_allclose(module.target_std, train.std(0), rtol=1e-4)
        assert metrics["val/mae"] < 50  # an untrained network predicts the mean
    else:
        assert torch.equal(module.target_std, torch.ones(num_targets))


def test_the_loss_of_regression_is_that_of_standardized_targets(tmp_path: Path) -> None:
    data = Patterns("real", 2)
    module = Regressor(network(2), nn.HuberLoss(), SGD, num_targets=2)
    metrics = fit_and_test(module, data, tmp_path)
    values, targets = map(torch.tensor, outputs_of(module, data, "test"))
    mean, std = module.target_mean, module.target_std
    with torch.no_grad():
        inputs = torch.cat([inputs for inputs, _ in data.evaluation_loader("test")])
        torch.testing.assert_close(module.exported_network()(inputs), values)
    expected = F.huber_loss((values - mean) / std, (targets - mean) / std)
    assert metrics["test/loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_balanced_class_weights_equal_those_of_scikit_learn(tmp_path: Path) -> None:
    data = Patterns("class", 3)
    loss = CrossEntropy(3, class_weights="balanced")
    fit_and_test(ImageClassifier(network(3), loss, SGD), data, tmp_path)
    labels = data.targets("train").numpy()
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(loss.weight, expected, rtol=1e-6)


def test_balanced_weights_train_as_the_same_weights_given(tmp_path: Path) -> None:
    data = Patterns("class", 3)
    data.setup("fit")
    counts = data.targets("train").bincount(minlength=3)
    given = (len(data.targets("train")) / (3 * counts)).tolist()
    trained = []
    for weights in ("balanced", given):
        module = ImageClassifier(network(3), CrossEntropy(3, class_weights=weights), SGD)
        fit_and_test(module, Patterns("class", 3), tmp_path)
        trained.append(torch.cat([value.flatten() for value in module.network.parameters()]))
    torch.testing.assert_close(trained[0], trained[1])


def test_balanced_weights_of_positives_are_negatives_per_positive(tmp_path: Path) -> None:
    data = Patterns("multilabel", 3)
    loss = BinaryCrossEntropy(3, pos_weight="balanced")
    fit_and_test(MultilabelClassifier(network(3), loss, SGD, num_labels=3), data, tmp_path)
    positive = data.targets("train").mean(0)
    torch.testing.assert_close(loss.pos_weight, (1 - positive) / positive)


def test_classes_without_images_have_no_balanced_weight() -> None:
    with pytest.raises(InputError, match=r"loss\.class_weights=balanced: class 1 has no training images"):
        CrossEntropy(3, class_weights="balanced").fit_targets(torch.tensor([0, 2, 2]))
    with pytest.raises(InputError, match=r"loss\.pos_weight=balanced: label 1 has no positive"):
        BinaryCrossEntropy(2, pos_weight="balanced").fit_targets(torch.tensor([[1.0, 0], [0, 0]]))


@pytest.mark.parametrize(
    ("module", "data", "message"),
    [
        (
            lambda: MultilabelClassifier(network(3), optimizer=SGD, num_labels=3),
            lambda: Patterns("class", 3),
            r"data: targets are not labels \(expected 0 or 1 of shape \[16, 3\], got int64 of shape \[16\]\)",
        ),
        (
            lambda: MultilabelClassifier(network(3), optimizer=SGD, num_labels=3),
            lambda: Patterns("real", 3),
            r"data: targets are not labels \(expected 0 to 1, got 3.* set task=regression for real values",
        ),
        (
            lambda: ImageClassifier(network(3), optimizer=SGD),
            lambda: Patterns("multilabel", 3),
            r"data: targets are not class probabilities .* several labels per image set task=multilabel",
        ),
        (
            lambda: Regressor(network(1), optimizer=SGD, standardize=False),
            lambda: Patterns("class", 3),
            r"data: targets are not real values \(expected floats of shape \[16, 1\], got int64",
        ),
        (
            lambda: Regressor(network(2), optimizer=SGD),
            lambda: Patterns("real", 1),
            r"model: outputs do not fit the targets \(expected floats of shape \[16, 1\], got .*\[16, 2\]",
        ),
    ],
)
def test_tasks_refuse_targets_and_outputs_of_another_kind(
    tmp_path: Path, module: Any, data: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        make_trainer(tmp_path, enable_checkpointing=False).fit(module(), data())
    assert "\n" not in str(refused.value)


def test_an_imbalanced_training_split_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    class Rare(Patterns):
        def load_split(self, split: Split) -> tuple[Tensor, Tensor] | None:
            loaded = super().load_split(split)
            if loaded is None:
                return None
            return loaded[0], (torch.arange(len(loaded[1])) < 6).long()

    caplog.set_level(logging.INFO, logger="project")
    for options, is_reported in (({}, True), ({"sampler": "balanced"}, False)):
        caplog.clear()
        Rare("class", 2, **options).setup("fit")
        assert ("imbalanced: 65 training images of 0, 5 of 1" in caplog.text) == is_reported


def test_balanced_sampling_needs_classes() -> None:
    with pytest.raises(InputError, match=r"data\.sampler=balanced: balances classes .*got multilabel"):
        Patterns("multilabel", 3, sampler="balanced")
