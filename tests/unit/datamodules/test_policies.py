"""Policies against torchvision's own classes: equal images for equal draws, and equal distributions."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_training import make_data as small_data
from small_training import make_trainer
from torch import Tensor
from torchvision.transforms import v2

from project.callbacks.checkpointing import LastCheckpoint
from project.datamodules.loading.augmentation import Augmentation, resize
from project.datamodules.loading.policies import AugMix, Operation, Policy, RandAugment, TrivialAugment
from project.datamodules.synthetic import Synthetic
from project.modules.classifier import ImageClassifier
from project.modules.losses import CrossEntropy
from project.modules.networks.resnet import ResNet

Recorded = list[list[Operation]]


def pixels(count: int = 48, channels: int = 3, height: int = 14, width: int = 17) -> Tensor:
    draws = torch.Generator().manual_seed(3)
    return torch.randint(256, (count, channels, height, width), dtype=torch.uint8, generator=draws)


def transform_each(
    images: Tensor, transform: Any, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Recorded]:
    """Apply a transform of torchvision to each image, and record the operations of each."""
    recorded: Recorded = []
    plain = type(transform)._apply_image_or_video_transform

    def record(self: Any, image: Any, name: str, magnitude: float, **options: Any) -> Any:
        recorded[-1].append(Operation(name, magnitude))
        return plain(self, image, name, magnitude, **options)

    outputs = []
    with monkeypatch.context() as patch:
        patch.setattr(type(transform), "_apply_image_or_video_transform", record)
        for image in images:
            recorded.append([])
            outputs.append(transform(image))
    return torch.stack(outputs), recorded


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("policy", "transform"),
    [
        (RandAugment(2, 9), v2.RandAugment(2, 9)),
        (RandAugment(3, 30), v2.RandAugment(3, 30)),
        (TrivialAugment(), v2.TrivialAugmentWide()),
    ],
)
def test_equal_draws_give_the_images_of_torchvision(
    policy: Policy, transform: Any, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    images = pixels(200, channels)
    expected, recorded = transform_each(images, transform, monkeypatch)
    changed = images
    for step in zip(*recorded, strict=True):
        changed = policy.apply(changed, step)
    assert torch.equal(changed, expected)


def test_augmix_mixes_as_torchvision_for_equal_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    images = pixels(60)
    transform = v2.AugMix(chain_depth=2)
    drawn: list[Tensor] = []
    sample = v2.AugMix._sample_dirichlet

    def record(self: Any, parameters: Tensor) -> Tensor:
        drawn.append(sample(self, parameters))
        return drawn[-1]

    monkeypatch.setattr(v2.AugMix, "_sample_dirichlet", record)
    expected, recorded = transform_each(images, transform, monkeypatch)
    halves, shares = torch.cat(drawn[::2]), torch.cat(drawn[1::2])
    weights = torch.cat([halves[:, :1], shares * halves[:, 1:]], dim=1).numpy()
    steps = [
        [operations[2 * chain + step] for chain in range(3) for operations in recorded] for step in (0, 1)
    ]
    mixed = AugMix().mix(images, weights, steps)
    assert torch.equal(mixed, expected)


@pytest.mark.parametrize(
    ("policy", "bins", "transform", "images"),
    [
        (RandAugment(1, 9), [9], v2.RandAugment(1, 9), 4000),
        (TrivialAugment(), range(31), v2.TrivialAugmentWide(), 4000),
        (AugMix(3), range(3), v2.AugMix(3), 1000),  # with several operations per image
    ],
)
def test_draws_have_the_distribution_of_torchvision(
    policy: Policy, bins: Any, transform: Any, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        type(transform), "_apply_image_or_video_transform", lambda self, image, *a, **k: image
    )
    torch.manual_seed(0)
    _, recorded = transform_each(pixels(1).expand(images, -1, -1, -1), transform, monkeypatch)
    theirs = Counter(operation for operations in recorded for operation in operations)
    repeats = 50
    drawn = policy.draw(repeats * theirs.total(), bins, np.random.default_rng(0), (14, 17))
    expected = {operation: count / repeats for operation, count in Counter(drawn).items()}
    assert set(theirs) <= set(expected)
    # Pearson's statistic has its degrees of freedom as mean, and twice as many as variance.
    statistic = sum((theirs[key] - count) ** 2 / count for key, count in expected.items())
    freedom = len(expected) - 1
    assert abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("name", ["randaugment", "trivialaugment", "augmix"])
def test_draws_depend_on_the_generator_alone(name: Any) -> None:
    augmentation, images = Augmentation(3, policy=name), pixels()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    once = augmentation.apply_policy(images, torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(augmentation.apply_policy(images, torch.Generator().manual_seed(5)), once)
    assert not torch.equal(augmentation.apply_policy(images, torch.Generator().manual_seed(6)), once)
    strided = images.to(memory_format=torch.channels_last)
    assert torch.equal(augmentation.apply_policy(strided, torch.Generator().manual_seed(5)), once)


def loader_of(make: Callable[..., Synthetic], epoch: int = 0, **options: Any) -> Any:
    datamodule = make(augment=Augmentation(3, **options))
    datamodule.setup("fit")
    loader = datamodule.train_dataloader()
    loader.order.set_epoch(epoch)
    return loader


def make_data(**options: Any) -> Synthetic:
    return Synthetic(
        input_shape=(3, 16, 20),
        num_classes=3,
        train_size=110,
        test_size=8,
        val_size=10,
        batch_size=16,
        **options,
    )


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_loader_resumes_with_the_same_changed_images(channels_last: bool) -> None:
    options = {"policy": "randaugment", "flip_prob": 0.5}

    def make(**more: Any) -> Synthetic:
        return make_data(channels_last=channels_last, **more)

    everything = [images for images, _ in loader_of(make, **options)]
    resumed = loader_of(make, **options)
    resumed.order.resume_at(0, 4)
    for (images, _), expected in zip(resumed, everything[4:], strict=True):
        assert torch.equal(images, expected)


def test_image_sizes_grow_to_the_full_size() -> None:
    augmentation = Augmentation(3, initial_size_fraction=0.5, full_size_epoch=4)
    sizes = [augmentation.image_size((32, 28), epoch) for epoch in range(6)]
    assert sizes == [(16, 16), (20, 16), (24, 20), (28, 24), (32, 28), (32, 28)]
    assert not Augmentation(3, initial_size_fraction=0.5).is_active


@pytest.mark.parametrize(("epoch", "size"), [(0, (8, 8)), (1, (12, 16)), (2, (16, 20))])
def test_a_loader_yields_scaled_images(epoch: int, size: tuple[int, int]) -> None:
    options = {"initial_size_fraction": 0.5, "full_size_epoch": 2}
    images, _ = next(iter(loader_of(make_data, epoch, **options)))
    full, _ = next(iter(loader_of(make_data, epoch)))
    assert images.shape[-2:] == size
    expected = v2.functional.resize(full, list(size), antialias=True)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)
    assert resize(full, (16, 20)) is full


def test_a_run_resumed_within_an_epoch_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def fit(folder: str, ckpt_path: Path | None = None, **options: Any) -> dict[str, Tensor]:
        augmentation = Augmentation(
            3, policy="trivialaugment", flip_prob=0.5, initial_size_fraction=0.5, full_size_epoch=2
        )
        torch.manual_seed(0)
        network = ResNet((1, 8, 8), 3, depth=8, width=4, stochastic_depth=0.3)
        module = ImageClassifier(network, CrossEntropy(3), partial(torch.optim.SGD, lr=0.05, momentum=0.9))
        trainer = make_trainer(tmp_path / folder, [LastCheckpoint(str(tmp_path / folder))], **options)
        trainer.fit(module, small_data(augment=augmentation), ckpt_path=ckpt_path, weights_only=True)
        return module.state_dict()

    full = fit("full", max_epochs=3)
    fit("part", max_epochs=3, max_steps=10)  # of 7 steps an epoch
    resumed = fit("resumed", tmp_path / "part" / "last.ckpt", max_epochs=3)
    assert all(torch.equal(value, resumed[name]) for name, value in full.items())
