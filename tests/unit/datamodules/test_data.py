"""Splits, batch order, normalization and preprocessing of data modules."""

from unittest.mock import ANY

import pytest
import torch

from project.datamodules.cifar10 import CIFAR10
from project.datamodules.digits import Digits
from project.datamodules.loading.batch_order import EvaluationOrder, TrainingOrder
from project.datamodules.loading.loader import ImageLoader, MemoryImages
from project.datamodules.mnist import MNIST
from project.datamodules.splits import stratified_split
from project.datamodules.synthetic import Synthetic
from project.errors import InputError
from project.runtime.seeding import generator

DIGITS = {"input_shape": (1, 28, 28), "num_classes": 10}


def rows_of(datamodule, split: str) -> set[int]:
    return set(datamodule._subsets[split].rows.tolist())


def test_digits_are_the_real_ones() -> None:
    data = Digits(**DIGITS)
    data.setup("fit")
    data.setup("test")
    counts = {split: data.count(split) for split in ("train", "val", "test")}
    assert sum(counts.values()) == 1797
    assert counts == {"train": 1294, "val": 144, "test": 359}
    labels = data._subsets["test"].images.labels
    assert labels.bincount().tolist() == [36, 36, 35, 37, 36, 36, 37, 35, 35, 36]  # the source's shares
    images, _ = next(iter(data.test_dataloader()))
    assert images.shape[1:] == (1, 28, 28)
    assert 0.5 < images.std() < 1.5


def test_validation_images_depend_on_the_split_seed_alone() -> None:
    first, second, other = Digits(**DIGITS, seed=1), Digits(**DIGITS, seed=2), Digits(**DIGITS, split_seed=1)
    for data in (first, second, other):
        data.setup("fit")
    assert rows_of(first, "val") == rows_of(second, "val") != rows_of(other, "val")
    assert not rows_of(first, "val") & rows_of(first, "train")
    assert rows_of(first, "val") | rows_of(first, "train") == set(range(1438))


@pytest.mark.parametrize(("val_size", "expected"), [(100, 100), (0.25, 360), (0, 0)])
def test_val_size_is_a_number_or_a_fraction(val_size: float, expected: int) -> None:
    data = Digits(**DIGITS, val_size=val_size)
    data.setup("fit")
    assert data.count("val") == expected
    assert data.count("train") == 1438 - expected
    assert data.has_validation == bool(expected)
    assert bool(data.val_dataloader()) == bool(expected)


@pytest.mark.parametrize("folds", [2, 5, 7])
def test_the_folds_are_disjoint_stratified_and_hold_every_training_image(folds: int) -> None:
    cuts = [Digits(**DIGITS, val_size=0, folds=folds, fold=fold, seed=fold) for fold in range(folds)]
    for data in cuts:
        data.setup("fit")
        assert data.has_validation
        assert rows_of(data, "val") | rows_of(data, "train") == set(range(1438))
        assert not rows_of(data, "val") & rows_of(data, "train")
    assert sorted(row for data in cuts for row in rows_of(data, "val")) == list(range(1438))
    labels = cuts[0]._subsets["val"].images.labels
    shares = torch.stack([labels[data._subsets["val"].rows].bincount(minlength=10) for data in cuts])
    assert (shares.amax(dim=0) - shares.amin(dim=0)).max() <= 1, shares
    assert max(data.count("val") for data in cuts) - min(data.count("val") for data in cuts) <= 1
    other = Digits(**DIGITS, folds=folds, split_seed=1)
    other.setup("fit")
    assert rows_of(other, "val") != rows_of(cuts[0], "val")


@pytest.mark.parametrize("size", [0, 1, 7, 60, 99])
def test_a_stratified_split_keeps_every_class_share(size: int) -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    kept, taken = stratified_split(labels, size, generator(0))
    assert len(taken) == size
    assert sorted(kept.tolist() + taken.tolist()) == list(range(100))
    for label, share in enumerate((0.5, 0.3, 0.2)):
        assert abs((labels[taken] == label).sum().item() - share * size) <= 1


@pytest.mark.parametrize(
    ("size", "batch_size", "world_size"), [(103, 10, 1), (105, 10, 2), (7, 4, 4), (96, 32, 2)]
)
def test_a_training_epoch_shows_every_image_once_whatever_the_ranks(
    size: int, batch_size: int, world_size: int
) -> None:
    orders = [
        TrainingOrder(size, batch_size, seed=5, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    shares = [list(order) for order in orders]
    assert len({len(share) for share in shares}) == 1
    assert len(shares[0]) == len(orders[0])
    assert all(len({len(share[step]) for share in shares}) == 1 for step in range(len(shares[0]))), (
        "ranks must take equal parts of each batch"
    )
    seen = torch.cat([torch.cat(share) for share in shares]).tolist()
    assert len(seen) == len(set(seen)) == size - size % world_size


def test_a_last_batch_of_one_image_per_rank_is_dropped() -> None:
    assert [len(batch) for batch in TrainingOrder(65, 16, seed=0)] == [16] * 4
    assert [len(batch) for batch in TrainingOrder(66, 16, seed=0, rank=1, world_size=2)] == [8] * 4
    assert [len(batch) for batch in TrainingOrder(1, 16, seed=0)] == [1]


def test_global_batches_equal_those_of_one_device() -> None:
    alone = list(TrainingOrder(64, 8, seed=5))
    pair = [list(TrainingOrder(64, 8, seed=5, rank=rank, world_size=2)) for rank in range(2)]
    for step, batch in enumerate(alone):
        assert sorted(batch.tolist()) == sorted(pair[0][step].tolist() + pair[1][step].tolist())


def test_the_order_follows_from_seed_and_epoch() -> None:
    order, again = TrainingOrder(50, 10, seed=1), TrainingOrder(50, 10, seed=1)
    first = torch.cat(list(order))
    assert torch.equal(first, torch.cat(list(again)))
    again.set_epoch(1)
    assert not torch.equal(first, torch.cat(list(again)))
    assert not torch.equal(first, torch.cat(list(TrainingOrder(50, 10, seed=2))))


@pytest.mark.parametrize("size", [2, 3, 9, 100, 101])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_evaluation_counts_every_image_once_in_as_many_batches_on_each_rank(
    size: int, world_size: int, batch_size: int
) -> None:
    orders = [
        EvaluationOrder(size, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    shares = [list(order) for order in orders]
    assert len({len(share) for share in shares}) == 1
    assert all(len(batch) > 0 for share in shares for batch in share)
    assert sorted(torch.cat([torch.cat(share) for share in shares]).tolist()) == list(range(size))


def test_batches_are_normalized() -> None:
    data = Digits(**DIGITS, mean=None, std=None)
    data.setup("fit")
    images = torch.cat([images for images, _ in data.train_dataloader()])
    assert images.mean().abs() < 1e-3
    assert images.std() == pytest.approx(1, abs=1e-3)
    state = {"mean": data.mean, "std": data.std, "class_names": list("0123456789")}
    assert data.state_dict() == {**state, "images": ANY}


def test_given_statistics_are_used_as_they_are() -> None:
    data = Digits(**DIGITS, mean=[0.0], std=[1.0])
    data.setup("test")
    images, _ = next(iter(data.test_dataloader()))
    assert images.min() == 0
    assert 0.9 < images.max() <= 1


def test_mnist_and_cifar10_read_their_official_test_split(data_overrides, mnist_root, cifar10_root) -> None:
    mnist = MNIST(str(mnist_root), **DIGITS, val_size=20)
    cifar = CIFAR10(str(cifar10_root), input_shape=(3, 32, 32), num_classes=10, val_size=0.1)
    for data, train, val, test in ((mnist, 180, 20, 40), (cifar, 180, 20, 40)):
        data.prepare_data()
        data.setup("fit")
        data.setup("test")
        assert [data.count(split) for split in ("train", "val", "test")] == [train, val, test]


def test_grayscale_and_resize_come_before_training(data_overrides, cifar10_root) -> None:
    data = CIFAR10(
        str(cifar10_root),
        input_shape=(1, 16, 20),
        num_classes=10,
        grayscale=True,
        resize=[16, 20],
        val_size=0,
    )
    data.setup("fit")
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape[1:] == (1, 16, 20)


def test_synthetic_images_are_learnable_and_repeatable() -> None:
    options = {"train_size": 300, "test_size": 100, "input_shape": (3, 9, 14), "num_classes": 4}
    data, again = Synthetic(**options), Synthetic(**options)
    (images, labels), (same, _) = data.load_split("train"), again.load_split("train")
    assert torch.equal(images, same)
    test_images, test_labels = data.load_split("test")
    centers = torch.stack([images[labels == label].float().mean(dim=0) for label in range(4)])
    distances = torch.cdist(test_images.float().flatten(1), centers.flatten(1))
    assert (distances.argmin(dim=1) == test_labels).float().mean() > 0.99


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Digits(input_shape=(1, 28, 28), num_classes=5),
            r"data\.num_classes=5.*0 to 9.*num_classes=10",
        ),
        (
            lambda: Digits(input_shape=(1, 30, 30), num_classes=10),
            r"data\.input_shape=\[1, 30, 30\].*\[1, 28, 28\]",
        ),
        (lambda: Digits(**DIGITS, val_size=1438), r"data\.val_size=1438: choose 0 to 1437"),
        (lambda: Digits(**DIGITS, folds=3, fold=3), r"data\.fold=3: must be 0 to 2, with data\.folds=3"),
        (lambda: Digits(**DIGITS, folds=1439), r"data\.folds=1439: choose 2 to 1438"),
        (lambda: Digits(**DIGITS, mean=[0.1, 0.2]), r"data\.mean=\[0\.1, 0\.2\]: 2 values for 1 channels"),
        (lambda: Digits(**DIGITS, std=[0.0]), r"data\.std=\[0\.0\]: must be above 0"),
        (
            lambda: Synthetic(train_size=10, test_size=1, input_shape=(1, 8, 8), num_classes=2, val_size=10),
            r"data\.val_size=10",
        ),
    ],
)
def test_data_that_do_not_fit_the_configuration_are_refused(build, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build().setup("fit")


def test_images_that_ranks_cannot_share_are_rejected() -> None:
    with pytest.raises(InputError, match=r"data\.batch_size=9: .*multiple of the number of devices, 2"):
        TrainingOrder(100, 9, seed=0, world_size=2)
    with pytest.raises(InputError, match="1 training images cannot be distributed over 2"):
        TrainingOrder(1, 2, seed=0, world_size=2)
    with pytest.raises(InputError, match="1 images cannot be distributed over 2"):
        EvaluationOrder(1, 2, world_size=2)


def test_augmentation_is_reproducible() -> None:
    from project.datamodules.loading.augmentation import Augmentation

    images = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8)
    order = TrainingOrder(40, 10, seed=3)
    loader = ImageLoader(
        MemoryImages(images, torch.arange(40) % 4),
        torch.arange(40),
        order,
        mean=[0.5],
        std=[0.5],
        device=torch.device("cpu"),
        augmentation=Augmentation(
            4, random_crop_padding=2, flip_prob=0.5, rotate=10, random_erasing_size=3, mixup=0.5, cutmix=0.5
        ),
        seed=3,
    )
    first, again = list(loader), list(loader)
    order.set_epoch(1)
    other = list(loader)
    for (images_a, targets_a), (images_b, targets_b) in zip(first, again, strict=True):
        assert torch.equal(images_a, images_b)
        assert torch.equal(targets_a, targets_b)
    assert not torch.equal(first[0][0], other[0][0])
