"""Measure the data path (throughput, start, memory, scaling), compared with torchvision and DataLoader.

    python benchmarks/data_path.py --data DIR                 all tables
    python benchmarks/data_path.py --data DIR --only speed    one table: batch, photos, start, …

DIR contains `MNIST/raw` and, for color images, JPEGs in `cifar10_jpeg/train/<class>`. Measurements that are
compared take turns, with one thread; tables show medians and ranges.
"""

import argparse
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

from project.datamodules.image_base import ImageDataModule
from project.datamodules.image_folder import ImageFolder
from project.datamodules.loading.augmentation import Augmentation
from project.datamodules.loading.batch_order import TrainingOrder
from project.datamodules.loading.loader import ImageLoader, MemoryImages
from project.datamodules.mnist import MNIST
from project.runtime.seeding import generator

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
COLOR = {"input_shape": (3, 32, 32), "num_classes": 10, "mean": MEAN, "std": STD, "val_size": 0}
GRAY = {"input_shape": (1, 28, 28), "num_classes": 10, "mean": [0.1307], "std": [0.3081], "val_size": 0}
Batches = Callable[[], Iterable[Any]]


class Decoded(Dataset):
    """Color images in memory, returned as PIL images like those of torchvision's CIFAR10."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable) -> None:
        self.data = images.permute(0, 2, 3, 1).contiguous().numpy()  # N, H, W, C
        self.targets = labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(transforms.functional.to_pil_image(self.data[index])), self.targets[index]


def tutorial(dataset: Dataset, batch_size: int, workers: int, images: int) -> Batches:
    """Return a loader as written in tutorials, over a subset of the images."""
    some = Subset(dataset, range(min(images, len(dataset))))
    return DataLoader(some, batch_size, shuffle=True, num_workers=workers).__iter__


def ours(data: ImageDataModule) -> Batches:
    """Return a function that loads an epoch of a data module."""
    data.prepare_data()
    data.setup("fit")
    return data.train_dataloader().__iter__


def rate(batches: Batches) -> float:
    """Return the images per second from the first batch on, without the start of workers."""
    loading = iter(batches())
    next(loading)
    start = time.perf_counter()
    images = sum(len(labels) for _, labels in loading)
    return images / (time.perf_counter() - start)


def speed(data: Path, kept: str, rounds: int, images: int) -> None:
    """Print the images per second."""
    gray = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    plain = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    cropped = transforms.Compose(
        [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *plain.transforms]
    )
    augment = Augmentation(10, random_crop_padding=4, flip_prob=0.5)
    digits = torchvision.datasets.MNIST(data, transform=gray)
    cases: dict[str, dict[str, Batches]] = {
        "MNIST, batch 64": {"ours": ours(MNIST(str(data), **GRAY, batch_size=64, image_cache=kept))}
        | {f"{workers}": tutorial(digits, 64, workers, images) for workers in (0, 2)}
    }
    if (folder := data / "cifar10_jpeg").exists():
        color = {**COLOR, "batch_size": 128, "image_cache": kept}
        module = ImageFolder(str(folder), **color, augment=augment)
        cases["CIFAR-10, batch 128, crop + flip"] = {"ours": ours(module)}
        source = module.subset("train").images
        decoded = Decoded(source.images, source.labels, cropped)
        files = torchvision.datasets.ImageFolder(folder / "train", plain)
        scattered = Subset(files, torch.randperm(len(files), generator=generator(0)).tolist())
        cases["the same as JPEG files, no augmentation"] = {"ours": ours(ImageFolder(str(folder), **color))}
        for workers in (0, 2):
            cases["CIFAR-10, batch 128, crop + flip"][f"{workers}"] = tutorial(decoded, 128, workers, images)
            cases["the same as JPEG files, no augmentation"][f"{workers}"] = tutorial(
                scattered, 128, workers, images
            )
    print("| images/s | ours | torchvision, 0 workers | torchvision, 2 workers | ours / faster of both |")
    print("| --- | --- | --- | --- | --- |")
    for name, variants in cases.items():
        rates: dict[str, list[float]] = {variant: [] for variant in variants}
        for _ in range(rounds):
            for variant, batches in variants.items():
                rates[variant].append(rate(batches))
        ratios = [one / max(*others) for one, *others in zip(*rates.values(), strict=True)]
        cells = [spread(values, "{:,.0f}") for values in rates.values()]
        print(f"| {name} | {' | '.join(cells)} | **{spread(ratios, '{:.1f}×')}** |", flush=True)


def photos(rounds: int) -> None:
    """Print the images per second of photographs that are streamed from JPEG files and scaled to 224×224."""
    print("| streamed JPEG files, images/s | ours | torchvision, 0 workers | ours / torchvision |")
    print("| --- | --- | --- | --- |")
    side = 224
    resized = [transforms.Resize((side, side)), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    options = {**COLOR, "input_shape": (3, side, side), "num_classes": 2, "resize": side, "batch_size": 8}
    options |= {"num_workers": 0, "memory_budget_mb": 1, "image_cache": None}
    for width, height, count in ((500, 375, 256), (4000, 3000, 32)):
        with tempfile.TemporaryDirectory() as folder:
            write_photos(Path(folder), (width, height), count)
            module = ImageFolder(folder, **options)
            files = torchvision.datasets.ImageFolder(Path(folder) / "train", transforms.Compose(resized))
            variants = {"ours": ours(module), "torchvision": tutorial(files, 8, 0, count)}
            rates: dict[str, list[float]] = {variant: [] for variant in variants}
            for _ in range(rounds):
                for variant, batches in variants.items():
                    rates[variant].append(rate(batches))
        ratios = [one / other for one, other in zip(*rates.values(), strict=True)]
        cells = [spread(values, "{:,.0f}") for values in rates.values()]
        print(f"| {width}×{height} | {' | '.join(cells)} | **{spread(ratios, '{:.1f}×')}** |", flush=True)


def write_photos(folder: Path, size: tuple[int, int], count: int) -> None:
    """Write smooth random color images with some noise as JPEG files of two classes."""
    draws = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(draws.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            size, Image.BICUBIC
        )
        noise = draws.normal(0, 4, (size[1], size[0], 1))
        pixels = np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)
        for split in ("train", "test") if number < 2 else ("train",):
            file = folder / split / "ab"[number % 2] / f"{number:03}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file, quality=90)


def batch(rounds: int) -> None:
    """Print the time per batch, compared with indexing float images in memory."""
    print("| µs per batch | `images[index]`, float in memory | our loader | ours / indexing |")
    print("| --- | --- | --- | --- |")
    for size, shape, augment in (
        *((size, (1, 28, 28), None) for size in (32, 64, 100)),
        *((size, (3, 32, 32), None) for size in (4, 128)),
        *((size, (3, 32, 32), Augmentation(10, random_crop_padding=4, flip_prob=0.5)) for size in (4, 128)),
    ):
        count = min(50_000, 3000 * size)
        pixels, labels = torch.randint(256, (count, *shape), dtype=torch.uint8), torch.arange(count) % 10
        loader = ImageLoader(
            MemoryImages(pixels, labels),
            torch.arange(count),
            TrainingOrder(count, size, seed=0),
            mean=MEAN[: shape[0]],
            std=STD[: shape[0]],
            device=torch.device("cpu"),
            augmentation=augment,
        )
        floats = pixels.float()
        times: dict[str, list[float]] = {"bare": [], "ours": []}
        for _ in range(rounds):
            for name, batches in (("bare", lambda: indexed(floats, labels, size)), ("ours", loader.__iter__)):  # noqa: B023
                times[name].append(1e6 * seconds(lambda: sum(1 for _ in batches())) / len(loader))  # noqa: B023
        ratios = [ours / bare for bare, ours in zip(*times.values(), strict=True)]
        name = f"{size} × {'×'.join(map(str, shape))}{', crop + flip' if augment else ''}"
        cells = [spread(values, "{:,.0f}") for values in times.values()]
        print(f"| {name} | {' | '.join(cells)} | **{spread(ratios, '{:.2f}×')}** |", flush=True)


def indexed(images: Tensor, labels: Tensor, size: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield the batches of a bare loop."""
    for index in torch.randperm(len(images)).split(size):
        yield images[index], labels[index]


def start(data: Path, rounds: int) -> None:
    """Print the time until the first batch."""
    print(
        "| seconds to the first batch | first start | later starts | torchvision |\n| --- | --- | --- | --- |"
    )
    folder = data / "cifar10_jpeg"
    cases: dict[str, tuple[Callable[[str], ImageDataModule], Callable[[], Dataset]]] = {
        "MNIST": (
            lambda kept: MNIST(str(data), **GRAY, image_cache=kept),
            lambda: torchvision.datasets.MNIST(data, transform=transforms.ToTensor()),
        )
    }
    if folder.exists():
        cases["JPEG files"] = (
            lambda kept: ImageFolder(str(folder), **COLOR, image_cache=kept),
            lambda: torchvision.datasets.ImageFolder(folder / "train", transforms.ToTensor()),
        )
    for name, (module, dataset) in cases.items():
        with tempfile.TemporaryDirectory() as kept:
            first = in_a_fork(lambda: seconds(lambda: next(iter(ours(module(kept))()))))  # noqa: B023
            settle(Path(kept))
            in_a_fork(lambda: next(iter(ours(module(kept))())) is not None)  # noqa: B023
            later, theirs = [], []
            for _ in range(rounds):
                later.append(in_a_fork(lambda: seconds(lambda: next(iter(ours(module(kept))())))))  # noqa: B023
                theirs.append(
                    in_a_fork(lambda: seconds(lambda: next(iter(DataLoader(dataset(), 64, shuffle=True)))))  # noqa: B023
                )
        cells = [f"{first:.2f}", spread(later, "{:.2f}"), spread(theirs, "{:.2f}")]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def memory() -> None:
    """Print the memory of one or several processes that iterate over the same 154 MB of images."""
    print("| processes | data mapped: RSS of one, MB | PSS of all | data read: RSS of one | PSS of all |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as kept:
        Random(50_000, kept).setup("fit")
        settle(Path(kept))
        for processes in (1, 2, 4):
            cells = []
            for mapped in (True, False):
                used = at_once(processes, lambda: Random(50_000, kept), copied=not mapped)
                cells += [f"{used[0][0]:.0f}", f"{sum(pss for _, pss in used):.0f}"]
            print(f"| {processes} | {' | '.join(cells)} |", flush=True)


def growth(rounds: int) -> None:
    """Print the cost of larger data sets."""
    print("| images, 3×32×32 | first start, s | later starts, s | epoch, s | epoch, µs per image |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as kept:
        for count in (20_000, 40_000, 100_000, 200_000):
            first = in_a_fork(lambda: seconds(lambda: Random(count, kept).setup("fit")))  # noqa: B023
            settle(Path(kept))
            in_a_fork(lambda: Random(count, kept).setup("fit") is None)  # noqa: B023
            later, epochs = [], []
            for _ in range(rounds):
                later.append(in_a_fork(lambda: seconds(lambda: Random(count, kept).setup("fit"))))  # noqa: B023
                loader = ours(Random(count, kept))
                epochs.append(seconds(lambda: sum(1 for _ in loader())))  # noqa: B023
            each = [1e6 * epoch / count for epoch in epochs]
            print(
                f"| {count:,} | {first:.2f} | {spread(later, '{:.3f}')} | {spread(epochs, '{:.2f}')} | "
                f"{spread(each, '{:.1f}')} |",
                flush=True,
            )


class Random(ImageDataModule):
    """Random images that are kept in the image cache."""

    def __init__(self, count: int, kept: str) -> None:
        super().__init__(name=f"random{count}", **COLOR, batch_size=128, image_cache=kept)
        self.count = count

    def cache_key(self, split: str) -> dict[str, int] | None:
        """See `ImageDataModule`."""
        return None if split == "val" else {"count": self.count}

    def load_split(self, split: str) -> tuple[Tensor, Tensor] | None:
        """See `ImageDataModule`."""
        if split == "val":
            return None
        pixels = np.random.default_rng(0).integers(0, 256, (self.count, 3, 32, 32), dtype=np.uint8)
        return torch.from_numpy(pixels), torch.arange(self.count) % 10


def at_once(
    processes: int, module: Callable[[], ImageDataModule], *, copied: bool
) -> list[tuple[float, float]]:
    """Return RSS and PSS [MB] of simultaneous processes after each has iterated over all images."""
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(processes), context.Queue()

    def iterate() -> None:
        data = module()
        batches = ours(data)
        if copied:
            images = data.subset("train").images
            images._rows = images._rows.clone()
        for _ in batches():
            pass
        barrier.wait()
        used = memory_used()
        barrier.wait()
        queue.put(used)

    workers = [context.Process(target=iterate) for _ in range(processes)]
    for worker in workers:
        worker.start()
    used = [queue.get() for _ in workers]
    for worker in workers:
        worker.join()
    return used


def memory_used() -> tuple[float, float]:
    """Return RSS and PSS of this process [MB]."""
    found = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, amount, *_ = line.split()
        found[name] = int(amount) * 1024 / 1e6
    return found["Rss:"], found["Pss:"]


def in_a_fork(work: Callable[[], float]) -> float:
    """Run `work` in a forked process, with all imports done but no data read."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=lambda: queue.put(work()))
    worker.start()
    result = queue.get()
    worker.join()
    return result


def seconds(work: Callable[[], Any]) -> float:
    """Return the duration of `work` [s]."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def settle(folder: Path) -> None:
    """Set the files' modification times back by a minute, as the cache distrusts fresh files."""
    for file in folder.glob("*.images"):
        os.utime(file, (time.time(), time.time() - 60))


def spread(values: list[float], form: str) -> str:
    """Format the median and range."""
    shown = [form.format(value) for value in (statistics.median(values), min(values), max(values))]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


def main() -> None:
    """Print the tables."""
    tables = ["batch", "speed", "photos", "start", "memory", "growth"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--images", type=int, default=10_000, help="images per epoch of torchvision's loaders"
    )
    parser.add_argument("--only", nargs="+", choices=tables, default=tables)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as kept:
        work = {
            "batch": lambda: batch(chosen.rounds),
            "speed": lambda: speed(chosen.data, kept, chosen.rounds, chosen.images),
            "photos": lambda: photos(chosen.rounds),
            "start": lambda: start(chosen.data, chosen.rounds),
            "memory": memory,
            "growth": lambda: growth(chosen.rounds),
        }
        for name, _ in itertools.groupby(chosen.only):
            work[name]()
            print()


if __name__ == "__main__":
    main()
