"""Invalid labels, network outputs, targets and losses are rejected with an error of one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_training import make_data, make_module, make_trainer
from torch import Tensor, nn

from project.datamodules.image_base import ImageDataModule
from project.errors import InputError
from project.modules.batch_checks import explain_forward_error
from project.modules.classifier import ImageClassifier
from project.modules.losses import CrossEntropy, OneHotMSE

CLASSES = torch.arange(60) % 3
ONE_HOT = nn.functional.one_hot(CLASSES)


class LabeledImages(ImageDataModule):
    """Data set of a user, with given labels."""

    def __init__(self, labels: Any, images: Any = None) -> None:
        super().__init__(name="own", input_shape=(1, 8, 8), num_classes=3, val_size=6)
        self.labels = labels
        self.images = torch.zeros(60, 1, 8, 8, dtype=torch.uint8) if images is None else images

    def load_split(self, split: str) -> Any:
        if split == "val":
            return None
        return self.images if self.labels is None else (self.images, self.labels)


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
    data = LabeledImages(labels)
    data.setup("fit")
    found = data.subset("train").images.labels
    assert found.dtype == torch.long
    assert torch.equal(found, CLASSES)


@pytest.mark.parametrize(
    "images",
    [
        torch.rand(60, 1, 8, 8),
        torch.zeros(60, 8, 8, dtype=torch.uint8),
        torch.zeros(60, 1, 8, 8).long(),
        "photos",
    ],
)
def test_images_that_are_no_eight_bit_pixels_are_refused(images: Any) -> None:
    with pytest.raises(InputError, match=r"the train images of data=own are not .*expected"):
        LabeledImages(CLASSES, images).setup("fit")


def test_arrays_of_numpy_are_images_too() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    data = LabeledImages(CLASSES, pixels)
    data.setup("fit")
    assert torch.equal(data.subset("train").images.images, torch.from_numpy(pixels))


def test_booleans_are_two_classes() -> None:
    data = LabeledImages(CLASSES > 0)
    data.setup("fit")
    assert torch.equal(data.subset("train").images.labels, (CLASSES > 0).long())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            CLASSES.float(),
            r"data: labels of the train images of data=own are not class indices \(expected integers of "
            r"shape \[60\], got float32 of shape \[60\]\); return labels\.long\(\) if",
        ),
        (torch.rand(60), r"got float32 of shape \[60\]\); .* for real values set TARGET_TYPE"),
        (torch.rand(60, 1), r"got float32 of shape \[60, 1\]\); .* for real values set TARGET_TYPE"),
        (torch.full((60,), torch.nan), r"got float32 of shape \[60\]"),
        (ONE_HOT, r"got int64 of shape \[60, 3\]\); return labels\.argmax\(1\)"),
        (ONE_HOT.float(), r"got float32 of shape \[60, 3\]\); return labels\.argmax\(1\)"),
        (
            torch.ones(60, 3),
            r"got float32 of shape \[60, 3\]\); for several labels per image set TARGET",
        ),
        (
            torch.ones(60, 3) > 0,
            r"got bool of shape \[60, 3\]\); for several labels per image set TARGET",
        ),
        (
            torch.rand(60, 3),
            r"got float32 of shape \[60, 3\]\); for several labels per image set TARGET",
        ),
        (CLASSES[:59], r"got int64 of shape \[59\]\); return one label for each image"),
        (torch.tensor(1), r"got int64 of shape \[\]\); return one label for each image"),
        (
            ["cat"] * 60,
            r"are not numbers \(expected 60 integers, got list\); return a tensor of class indices",
        ),
        (
            None,
            r"data: the train images of data=own have no labels; have load_split return images and labels",
        ),
        (CLASSES - 1, r"data\.num_classes=3: labels of .* run from -1 to 1"),
        (CLASSES + 1, r"data\.num_classes=3: labels of .* run from 1 to 3; set data\.num_classes=4"),
    ],
)
def test_other_labels_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        LabeledImages(labels).setup("fit")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("split", ["train", "test"])
def test_splits_that_are_not_there_are_refused_before_training(tmp_path: Path, split: str) -> None:
    class Without(LabeledImages):
        def load_split(self, wanted: str) -> Any:
            return None if wanted == split else super().load_split(wanted)

    with pytest.raises(
        InputError, match=f"^data: the {split} images of data=own are missing; have load_split"
    ):
        make_trainer(tmp_path, enable_checkpointing=False).fit(make_module(), Without(CLASSES))


class Outputs(nn.Module):
    """Network whose outputs do not have the shape of logits."""

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
    message = (
        rf"model: outputs are not logits \(expected floats of shape \[16, 3\], got {got}\); end the network"
    )
    with pytest.raises(InputError, match=message):
        make_trainer(tmp_path, enable_checkpointing=False).fit(module, make_data())


class Batches:
    """Loader of two batches, without a data set."""

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets

    def __len__(self) -> int:
        return 2

    def __iter__(self):
        return iter([(torch.zeros(len(self.targets), 1, 8, 8), self.targets)] * 2)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            torch.ones(4, 3),
            r"data: targets are not class probabilities .* rows that sum to 1, got sums from 3 to 3\)",
        ),
        (
            torch.rand(4),
            r"data: targets are not class indices .* got float32 of shape \[4\]\); return one class",
        ),
        (torch.ones(4, 3).long(), r"data: targets are not class indices .* got int64 of shape \[4, 3\]"),
        (torch.tensor([0, 1, 2, 9]), r"loss: Target 9 is out of bounds"),
    ],
)
def test_targets_that_are_no_classes_are_refused(tmp_path: Path, targets: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_trainer(tmp_path, enable_checkpointing=False).fit(make_module(), Batches(targets))


class PerImage(nn.Module):
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, targets, reduction="none")


def test_losses_that_are_no_means_are_refused(tmp_path: Path) -> None:
    for reduction in ("sum", "none"):
        with pytest.raises(
            InputError, match=rf"loss\.reduction={reduction}: the loss must average over images"
        ):
            ImageClassifier(Outputs("logits"), nn.CrossEntropyLoss(reduction=reduction))
    with pytest.raises(
        InputError, match=r"loss: not a scalar \(expected a scalar tensor, got float32 of shape \[16\]"
    ):
        make_trainer(tmp_path, enable_checkpointing=False).fit(
            ImageClassifier(Outputs("logits"), PerImage()), make_data()
        )


class Flat(nn.Module):
    """Linear network for a number of pixels, with normalized logits."""

    def __init__(self, pixels: int = 64, normalization: nn.Module | None = None) -> None:
        super().__init__()
        self.head = nn.Linear(pixels, 3)
        self.normalization = normalization or nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.normalization(self.head(images.flatten(1)))


def fit(folder: Path, network: nn.Module, batch_size: int = 16) -> None:
    data = make_data()
    data.batch_size = batch_size
    make_trainer(folder, max_epochs=1, enable_checkpointing=False).fit(ImageClassifier(network), data)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Flat(784), r"model: Flat does not accept images of data\.input_shape=\[1, 8, 8\] \(.*mat1"),
        (
            nn.Conv2d(3, 3, 3),
            r"model: Conv2d does not accept images of data\.input_shape=\[1, 8, 8\] \(.*channels",
        ),
        (nn.Sequential(nn.Conv2d(1, 3, 3), nn.MaxPool2d(8)), r"model: Sequential does not .*too small"),
    ],
)
def test_images_that_a_network_does_not_take_are_reported(
    tmp_path: Path, network: nn.Module, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fit(tmp_path, network)


def test_batch_norm_that_cannot_be_synchronized_is_reported(tmp_path: Path) -> None:
    synchronized = Flat(64, nn.SyncBatchNorm(3))
    fit(tmp_path, synchronized)  # one process: there is nothing to synchronize
    message = explain_forward_error(
        synchronized, torch.zeros(4, 1, 8, 8), "SyncBatchNorm expected input on GPU"
    )
    assert message.startswith("trainer.sync_batchnorm=true: needs GPUs (SyncBatchNorm")


def test_one_image_on_a_device_is_refused_where_batch_norm_has_one_value(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"data\.batch_size: Flat does not accept one image .* at least 2 images"
    ):
        fit(tmp_path, Flat(64, nn.BatchNorm1d(3)), batch_size=1)


@pytest.mark.filterwarnings("ignore:Found 1 module")
@pytest.mark.parametrize(
    ("network", "batch_size"),
    [
        (Flat(), 1),
        (nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 1),
        (Flat(64, nn.BatchNorm1d(3).eval()), 1),
        (Flat(64, nn.BatchNorm1d(3)), 99),  # of 100 images: the last one waits
    ],
)
def test_single_images_train_where_torch_can_do_it(
    tmp_path: Path, network: nn.Module, batch_size: int
) -> None:
    fit(tmp_path, network, batch_size)


def test_an_error_inside_the_network_is_not_replaced(tmp_path: Path) -> None:
    class Broken(Flat):
        def forward(self, images: Tensor) -> Tensor:
            return self.headd(images)  # type: ignore[no-any-return, operator]

    with pytest.raises(AttributeError, match="headd"):
        fit(tmp_path, Broken())
