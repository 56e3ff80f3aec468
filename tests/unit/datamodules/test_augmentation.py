"""Augmentations: effect, bounds, and targets of mixed images."""

import pytest
import torch

from project.datamodules.loading.augmentation import (
    Augmentation,
    cutmix,
    mixup,
    random_affine,
    random_crop,
    random_erase,
)
from project.errors import InputError
from project.runtime.seeding import generator

NONE = {"rotate": 0.0, "translate": 0.0, "scale": 0.0, "shear": 0.0}


def batch(count: int = 64, channels: int = 3, height: int = 12, width: int = 10) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=generator(0)) + 1


def test_a_crop_shifts_each_image_by_its_own_draw() -> None:
    images = batch(count=200)
    cropped = random_crop(images, 2, generator(1))
    assert cropped.shape == images.shape
    padded = torch.nn.functional.pad(images, (2,) * 4)
    shifts = set()
    for image, source in zip(cropped, padded, strict=True):
        found = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(image, source[:, top : top + 12, left : left + 10])
        ]
        assert len(found) == 1
        shifts.add(found[0])
    assert len(shifts) == 25


def test_a_flip_mirrors_some_images_and_leaves_the_others() -> None:
    images = batch(count=200)
    flipped, _ = Augmentation(2, flip_prob=0.3)(images, torch.zeros(200), generator(1))
    mirrored = [torch.equal(new, old.flip(-1)) for new, old in zip(flipped, images, strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 0.2 < sum(mirrored) / 200 < 0.4


def test_an_identity_affine_map_changes_nothing() -> None:
    images = batch()
    torch.testing.assert_close(random_affine(images, generator(1), **NONE), images)


def test_a_rotation_keeps_distances_for_any_aspect_ratio() -> None:
    # A dot at 8 pixels from the center stays there, in a wide image as well.
    images = torch.zeros(300, 1, 21, 41)
    images[:, 0, 10, 28] = 1
    rotated = random_affine(images, generator(1), **(NONE | {"rotate": 45.0}))
    mass = rotated.sum(dim=(1, 2, 3))
    rows = (rotated.sum(dim=3)[:, 0] * torch.arange(21)).sum(dim=1) / mass - 10
    columns = (rotated.sum(dim=2)[:, 0] * torch.arange(41)).sum(dim=1) / mass - 20
    radius = (rows**2 + columns**2).sqrt()
    angle = torch.rad2deg(torch.atan2(rows, columns))
    assert (radius - 8).abs().max() < 0.3
    assert -46 < angle.min() < -35
    assert 35 < angle.max() < 46


def test_a_translation_stays_within_its_bound() -> None:
    images = torch.zeros(300, 1, 21, 41)
    images[:, 0, 10, 20] = 1
    moved = random_affine(images, generator(1), **(NONE | {"translate": 0.1}))
    mass = moved.sum(dim=(1, 2, 3))
    columns = (moved.sum(dim=2)[:, 0] * torch.arange(41)).sum(dim=1) / mass - 20
    assert 3.5 < columns.abs().max() < 4.2


def test_erasing_clears_a_square_of_at_most_its_side() -> None:
    images = batch(count=300)
    erased = random_erase(images, 4, 0.5, generator(1))
    cleared = (erased == 0).flatten(1)
    untouched = ~cleared.any(dim=1)
    assert 0.4 < untouched.float().mean() < 0.6
    per_channel = (erased == 0).sum(dim=(2, 3))
    assert per_channel.max() == 16
    assert (per_channel == per_channel[:, :1]).all()
    assert torch.equal(erased[erased != 0], images[erased != 0])


def test_mixup_blends_images_and_targets_alike() -> None:
    images, targets = batch(), torch.eye(64)
    kept = torch.linspace(0, 1, 64)
    mixed, mixed_targets = mixup(images, targets, kept, generator(1))
    expected = torch.einsum("bk,kchw->bchw", mixed_targets, images)
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(mixed_targets.sum(dim=1), torch.ones(64))


def test_cutmix_targets_are_the_areas() -> None:
    images = torch.arange(64.0).view(-1, 1, 1, 1).expand(-1, 1, 12, 10).contiguous()
    mixed, targets = cutmix(images, torch.eye(64), torch.rand(64, generator=generator(2)), generator(1))
    for number, (image, target) in enumerate(zip(mixed, targets, strict=True)):
        own_area = (image == number).float().mean()
        assert target[number] == pytest.approx(own_area.item(), abs=1e-5)
    assert (targets > 0).sum(dim=1).max() == 2


def test_targets_stay_labels_unless_images_are_mixed() -> None:
    images, labels = batch(), torch.arange(64) % 10
    _, same = Augmentation(10, flip_prob=0.5)(images, labels, generator(1))
    assert same is labels
    _, mixed = Augmentation(10, mixup=0.2, cutmix=1.0)(images, labels, generator(1))
    assert mixed.shape == (64, 10)


def test_nothing_is_active_by_default() -> None:
    assert not Augmentation(10).is_active
    assert Augmentation(10, shear=1.0).is_active


@pytest.mark.parametrize(
    ("option", "value"), [("flip_prob", 1.5), ("random_crop_padding", -1), ("rotate", 270), ("mixup", -0.1)]
)
def test_values_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"augment\.{option}={value}: must be at least 0"):
        Augmentation(10, **{option: value})
