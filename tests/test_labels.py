"""Labels, outputs and losses that no accuracy could be given of are refused in one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import make_data, make_module, make_trainer
from torch import Tensor, nn

from project.datamodules.base import ImageDataModule
from project.errors import InputError
from project.modules.classifier import ImageClassifier
from project.modules.losses import CrossEntropy, OneHotMSE

CLASSES = torch.arange(60) % 3
ONE_HOT = nn.functional.one_hot(CLASSES)


class Own(ImageDataModule):
    """A data set of one's own, with these labels."""

    def __init__(self, labels: Any) -> None:
        super().__init__(name="own", input_shape=(1, 8, 8), num_classes=3, val_size=6)
        self.labels = labels

    def read(self, split: str) -> Any:
        if split == "val":
            return None
        images = torch.zeros(60, 1, 8, 8, dtype=torch.uint8)
        return images if self.labels is None else (images, self.labels)


@pytest.mark.parametrize(
    "labels",
    [
        CLASSES,
        *(CLASSES.to(kind) for kind in (torch.uint8, torch.int8, torch.int16, torch.int32)),
        CLASSES[:, None],
        CLASSES.numpy().astype(np.uint16),
        CLASSES.tolist(),
    ],
)
def test_integers_of_any_kind_are_class_indices(labels: Any) -> None:
    data = Own(labels)
    data.setup("fit")
    found = data.part("train").images.labels
    assert found.dtype == torch.long
    assert torch.equal(found, CLASSES)


def test_booleans_are_two_classes() -> None:
    data = Own(CLASSES > 0)
    data.setup("fit")
    assert torch.equal(data.part("train").images.labels, (CLASSES > 0).long())


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (
            CLASSES.float(),
            r"data: labels of the train images of data=own are no class indices \(expected integers of shape "
            r"\[60\], got float32 of shape \[60\]\); return labels\.long\(\) if",
        ),
        (torch.rand(60), r"got float32 of shape \[60\]\); .* real values are not trained"),
        (torch.rand(60, 1), r"got float32 of shape \[60, 1\]\); .* real values are not trained"),
        (torch.full((60,), torch.nan), r"got float32 of shape \[60\]"),
        (ONE_HOT, r"got int64 of shape \[60, 3\]\); return labels\.argmax\(1\)"),
        (ONE_HOT.float(), r"got float32 of shape \[60, 3\]\); return labels\.argmax\(1\)"),
        (torch.ones(60, 3), r"got float32 of shape \[60, 3\]\); several labels for each image are not"),
        (torch.ones(60, 3) > 0, r"got bool of shape \[60, 3\]\); several labels for each image are not"),
        (torch.rand(60, 3), r"got float32 of shape \[60, 3\]\); several labels for each image are not"),
        (CLASSES[:59], r"got int64 of shape \[59\]\); return one label for each image"),
        (torch.tensor(1), r"got int64 of shape \[\]\); return one label for each image"),
        (
            ["cat"] * 60,
            r"are no numbers \(expected 60 integers, got list\); return a tensor of class indices",
        ),
        (None, r"data: the train images of data=own have no labels; have read return images and labels"),
        (CLASSES - 1, r"data\.num_classes=3: labels of .* run from -1 to 1"),
        (CLASSES + 1, r"data\.num_classes=3: labels of .* run from 1 to 3; set data\.num_classes=4"),
    ],
)
def test_other_labels_are_refused(labels: Any, told: str) -> None:
    with pytest.raises(InputError, match=told) as refused:
        Own(labels).setup("fit")
    assert "\n" not in str(refused.value)


class Outputs(nn.Module):
    """A network whose outputs are of another shape than logits."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 4 if kind == "more" else 3)
        self.kind = kind

    def forward(self, images: Tensor) -> Any:
        logits = self.layer(images.flatten(1))
        kinds = {
            "maps": logits[:, :, None, None],
            "one": logits[:, 0],
            "tuple": (logits, logits),
            "sum": logits.sum(0, keepdim=True),
            "classes": logits.argmax(1, keepdim=True).expand(-1, 3),
        }
        return kinds.get(self.kind, logits)


@pytest.mark.parametrize("loss", [CrossEntropy, OneHotMSE])
@pytest.mark.parametrize(
    ("kind", "got"),
    [
        ("more", r"float32 of shape \[16, 4\]"),
        ("maps", r"float32 of shape \[16, 3, 1, 1\]"),
        ("one", r"float32 of shape \[16\]"),
        ("sum", r"float32 of shape \[1, 3\]"),
        ("classes", r"int64 of shape \[16, 3\]"),
        ("tuple", "tuple"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(tmp_path: Path, loss: Any, kind: str, got: str) -> None:
    module = ImageClassifier(Outputs(kind), loss(3))
    told = rf"model: outputs are no logits \(expected floats of shape \[16, 3\], got {got}\); end the network"
    with pytest.raises(InputError, match=told):
        make_trainer(tmp_path, enable_checkpointing=False).fit(module, make_data())


class Batches:
    """A loader without a data set, of two batches."""

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets

    def __len__(self) -> int:
        return 2

    def __iter__(self):
        return iter([(torch.zeros(len(self.targets), 1, 8, 8), self.targets)] * 2)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (
            torch.ones(4, 3),
            r"data: targets are no probabilities .* rows that sum to 1, got 3 to 3\); several",
        ),
        (
            torch.rand(4),
            r"data: targets are no class indices .* got float32 of shape \[4\]\); give one class",
        ),
        (torch.ones(4, 3).long(), r"data: targets are no class indices .* got int64 of shape \[4, 3\]"),
        (torch.tensor([0, 1, 2, 9]), r"loss: Target 9 is out of bounds"),
    ],
)
def test_targets_that_are_no_classes_are_refused(tmp_path: Path, targets: Tensor, told: str) -> None:
    with pytest.raises(InputError, match=told):
        make_trainer(tmp_path, enable_checkpointing=False).fit(make_module(), Batches(targets))


class PerImage(nn.Module):
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, targets, reduction="none")


def test_losses_that_are_no_means_are_refused(tmp_path: Path) -> None:
    for reduction in ("sum", "none"):
        with pytest.raises(InputError, match=rf"loss\.reduction={reduction}: no mean over images"):
            ImageClassifier(Outputs("logits"), nn.CrossEntropyLoss(reduction=reduction))
    with pytest.raises(
        InputError, match=r"loss: not one number \(expected a scalar, got float32 of shape \[16\]"
    ):
        make_trainer(tmp_path, enable_checkpointing=False).fit(
            ImageClassifier(Outputs("logits"), PerImage()), make_data()
        )
