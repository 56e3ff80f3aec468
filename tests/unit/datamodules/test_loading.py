"""Batches fetched in groups equal batches made one at a time, bit for bit."""

import threading

import numpy as np
import pytest
import torch

from project.datamodules.loading.augmentation import Augmentation
from project.datamodules.loading.batch_order import EvaluationOrder, Order, TrainingOrder
from project.datamodules.loading.loader import ImageLoader, MemoryImages
from project.datamodules.loading.prefetch import prefetch
from project.runtime.seeding import (
    AUGMENTATION_STREAM,
    NETWORK_STREAM,
    batch_generators,
    batch_seed,
    generator,
)

MEAN, STD = [0.49, 0.48, 0.45], [0.24, 0.25, 0.26]


@pytest.fixture
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the group size, so that few batches form many groups."""
    monkeypatch.setattr(MemoryImages, "CACHED_BYTES", 20_000)


def pixels_of(count: int, shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator(9))


def make_loader(
    pixels: torch.Tensor,
    order: Order,
    augmentation: Augmentation | None = None,
    *,
    channels_last: bool = False,
) -> ImageLoader:
    count, channels = pixels.shape[:2]
    return ImageLoader(
        MemoryImages(pixels, torch.arange(count) % 7, channels_last=channels_last),
        torch.arange(count).flip(0)[3:],
        order,
        mean=MEAN[:channels],
        std=STD[:channels],
        device=torch.device("cpu"),
        augmentation=augmentation,
        seed=3,
        rank=getattr(order, "rank", 0),
    )


def reference_batches(loader: ImageLoader, pixels: torch.Tensor, epoch: int, start: int = 0):
    """Yield the batches of an epoch, computed one at a time by plain code."""
    count, channels = pixels.shape[:2]
    order = loader.order
    shift = 255 * torch.tensor(MEAN[:channels]).view(-1, 1, 1)
    scale = 1 / (255 * torch.tensor(STD[:channels]).view(-1, 1, 1))
    if isinstance(order, TrainingOrder):
        shuffled = torch.randperm(count - 3, generator=generator(order.seed, epoch))[: order.size]
        batches = [part[order.rank :: order.world_size] for part in shuffled.split(order.batch_size)]
    else:
        batches = list(order.shard.tensor_split(order.num_batches))
    for number, batch in list(enumerate(batches))[start:]:
        rows = torch.arange(count).flip(0)[3:][batch]
        images = (pixels[rows].float() - shift) * scale
        labels = (torch.arange(count) % 7)[rows]
        if loader.augmentation is None:
            yield images, labels
        else:
            draws = torch.Generator().manual_seed(batch_seed(3, epoch, number, loader.rank))
            yield loader.augmentation(images, labels, draws)


def assert_same(found, expected) -> None:
    for (images, targets), (same, same_targets) in zip(found, expected, strict=True):
        assert torch.equal(images, same)
        assert torch.equal(targets, same_targets)


AUGMENTATION = Augmentation(
    7, random_crop_padding=2, flip_prob=0.5, rotate=10, random_erasing_size=3, mixup=0.5, cutmix=0.5
)


@pytest.mark.usefixtures("_small_groups")
@pytest.mark.parametrize("augmentation", [None, AUGMENTATION])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 16), (3, 9, 7)])
@pytest.mark.parametrize(("batch_size", "rank", "world_size"), [(4, 0, 1), (12, 1, 2), (50, 0, 1)])
def test_grouped_batches_are_those_made_one_by_one(
    shape, batch_size, rank, world_size, channels_last, augmentation
) -> None:
    pixels = pixels_of(203, shape)
    order = TrainingOrder(200, batch_size, seed=5, rank=rank, world_size=world_size)
    loader = make_loader(pixels, order, augmentation, channels_last=channels_last)
    for epoch in range(2):
        order.set_epoch(epoch)
        kept = list(loader)  # all of an epoch at a time: no batch may be overwritten by a later one
        assert len(kept) == len(loader)
        assert_same(kept, reference_batches(loader, pixels, epoch))


@pytest.mark.usefixtures("_small_groups")
@pytest.mark.parametrize("count", [10, 103, 109])
def test_grouped_evaluation_batches_are_those_made_one_by_one(count: int) -> None:
    pixels = pixels_of(count, (3, 12, 16))
    for rank in range(2):
        loader = make_loader(pixels, EvaluationOrder(count - 3, 10, rank=rank, world_size=2))
        assert_same(loader, reference_batches(loader, pixels, 0))


@pytest.mark.usefixtures("_small_groups")
@pytest.mark.parametrize("start", [0, 1, 38, 49, 50])
def test_an_epoch_is_resumed_within_a_group(start: int) -> None:
    pixels = pixels_of(203, (1, 16, 16))
    order = TrainingOrder(200, 4, seed=5)
    loader = make_loader(pixels, order, AUGMENTATION)
    order.resume_at(2, start)
    assert_same(loader, reference_batches(loader, pixels, 2, start))
    order.set_epoch(3)
    assert_same(loader, reference_batches(loader, pixels, 3))


def test_several_batches_share_a_group_that_fits_the_cache() -> None:
    pixels = pixels_of(4003, (1, 16, 16))
    groups = list(make_loader(pixels, TrainingOrder(4000, 4, seed=5))._normalized())
    storages = {
        images.untyped_storage().data_ptr(): images.untyped_storage().nbytes() for images, _ in groups
    }
    assert len(groups) == 1000
    assert len(storages) == 4, "256 batches of 4 KiB fit into the 1 MiB of a group"
    assert max(storages.values()) <= MemoryImages.CACHED_BYTES


@pytest.mark.parametrize("shape", [(1, 5, 5), (3, 12, 16)])
@pytest.mark.parametrize("batch_size", [3, 8, 16])
def test_every_batch_is_aligned_as_a_separate_allocation(shape, batch_size: int) -> None:
    loader = make_loader(pixels_of(203, shape), TrainingOrder(200, batch_size, seed=5))
    assert {images.data_ptr() % 64 for images, _ in loader} == {0}


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 16)])
def test_channels_last_batches_need_no_conversion(shape) -> None:
    loader = make_loader(pixels_of(203, shape), TrainingOrder(200, 16, seed=5), channels_last=True)
    for images, _ in loader:
        assert images.contiguous(memory_format=torch.channels_last).data_ptr() == images.data_ptr()
        assert images.shape[1:] == shape


def test_pixels_in_the_wanted_order_are_not_copied() -> None:
    pixels = pixels_of(20, (3, 12, 16))
    assert MemoryImages(pixels, torch.zeros(20)).images.data_ptr() == pixels.data_ptr()
    turned = pixels.to(memory_format=torch.channels_last)
    images = MemoryImages(turned, torch.zeros(20), channels_last=True).images
    assert images.data_ptr() == turned.data_ptr()
    assert torch.equal(images, pixels)


def test_seeds_of_batches_differ_and_follow_from_their_key_alone() -> None:
    keys = [
        (seed, epoch, batch, rank)
        for seed in (0, 1, 2**40)
        for epoch in range(3)
        for batch in range(200)
        for rank in range(3)
    ]
    seeds = [batch_seed(*key, stream) for key in keys for stream in (AUGMENTATION_STREAM, NETWORK_STREAM)]
    assert len({seed & 0xFFFFFFFF for seed in seeds}) == len(seeds), "what a CPU's generator takes of them"
    assert all(0 <= seed < 2**63 for seed in seeds)
    bits = np.array(seeds, dtype=np.uint64)[:, None] >> np.arange(63, dtype=np.uint64) & np.uint64(1)
    assert abs(bits.mean(axis=0) - 0.5).max() < 0.03, "no bit is the same for most"
    draws = batch_generators(5, 1, 250, 2)
    for number in range(250, 300):
        assert next(draws).initial_seed() == batch_seed(5, 1, number, 2)


def test_prefetching_keeps_the_order_and_stops_early() -> None:
    done: list[int] = []

    def work(piece: int) -> int:
        done.append(piece)
        if piece == 50:
            raise ValueError("fifty")
        return piece * 2

    results = prefetch(work, range(100))
    assert [next(results) for _ in range(5)] == [0, 2, 4, 6, 8]
    results.close()
    assert len(done) <= 8, "two pieces are done beforehand, not all"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
    with pytest.raises(ValueError, match="fifty"):
        list(prefetch(work, range(100)))
