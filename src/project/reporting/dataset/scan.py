"""One pass over the images of a data set: digests, perceptual hashes, thumbnails, sizes, statistics."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from project.datamodules.base import Split
from project.datamodules.image_base import ImageDataModule
from project.datamodules.loading.loader import FileImages, Images
from project.errors import InputError
from project.runtime.devices import available_cpus
from project.runtime.extras import import_extra
from project.runtime.text import printable

CHUNK = 64
"""Images per task of a thread."""
THUMBNAIL = 16
"""Side of the gray thumbnails that are compared, pixels."""


class Place(NamedTuple):
    """Image of a data set: its split, and its row among the training, validation or test images."""

    split: Split
    row: int


@dataclass
class Scan:
    """Facts about the readable images of a data set.

    Args:
        places: split and row of each image.
        digests: digest of the pixels of each image, after scaling to the network's input.
        hashes: perceptual hash of each image (N,) uint64; empty if not wanted.
        thumbnails: gray thumbnails (N, 16, 16) uint8; empty if not wanted.
        counts: number of pixels of each value by split and channel (C, 256).
        sizes: number of files of each size (width, height), as stored.
        modes: number of files of each format and color mode.
        unreadable: file and reason of each unreadable image.
    """

    places: list[Place] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    hashes: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    thumbnails: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 0, 0), np.uint8))
    counts: dict[str, Tensor] = field(default_factory=dict)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    unreadable: dict[Place, str] = field(default_factory=dict)


class _Facts(NamedTuple):
    digest: bytes
    hash: bytes
    thumbnail: NDArray[np.uint8]
    size: tuple[int, int]
    mode: str


def scan_images(data: ImageDataModule, splits: list[Split], *, near: bool) -> Scan:
    """Read all images of some splits once; unreadable ones are noted.

    Args:
        data: data module whose splits are set up.
        splits: splits to read.
        near: compute perceptual hashes and thumbnails.

    Raises:
        InputError: `near`, and ImageHash is not installed.
    """
    perceptual = import_extra("imagehash", "near=true", "data").phash if near else None
    scan, hashes, thumbnails = Scan(), bytearray(), []
    tasks = [
        (split, images, rows)
        for split in splits
        for images, all_rows in [data.subset(split)]
        for rows in all_rows.split(CHUNK)
    ]
    total = sum(data.count(split) for split in splits)
    with (
        ThreadPoolExecutor(available_cpus()) as threads,
        tqdm(total=total, unit=" images", leave=False, disable=None) as bar,
    ):
        found = threads.map(lambda task: _read(task[1], task[2], perceptual), tasks)
        for (split, _, rows), (counts, facts) in zip(tasks, found, strict=True):
            scan.counts.setdefault(split, torch.zeros((data.input_shape[0], 256), dtype=torch.long))
            if counts is not None:
                scan.counts[split] += counts
            for row, fact in zip(rows.tolist(), facts, strict=True):
                if isinstance(fact, str):
                    scan.unreadable[Place(split, row)] = fact
                    continue
                scan.places.append(Place(split, row))
                scan.digests.append(fact.digest)
                scan.sizes[fact.size] += 1
                scan.modes[fact.mode] += 1
                if near:
                    hashes += fact.hash
                    thumbnails.append(fact.thumbnail)
            bar.update(len(rows))
    if thumbnails:
        scan.hashes = np.frombuffer(bytes(hashes), np.uint64)
        scan.thumbnails = np.stack(thumbnails)
    return scan


def _read(images: Images, rows: Tensor, perceptual: Any) -> tuple[Tensor | None, list[_Facts | str]]:
    """Return counts (C, 256) of the pixel values of some images, and facts or the error of each."""
    readable, facts = list[Tensor](), list[_Facts | str]()
    for pixels in _pixels(images, rows):
        if isinstance(pixels, str):
            facts.append(pixels)
            continue
        array = np.ascontiguousarray(pixels.numpy())
        image = to_image(array)
        size, mode = image.size, f"{'gray' if image.mode == 'L' else 'RGB'}, 8 bits"
        if isinstance(images, FileImages):
            size, mode = _header(images.files[int(rows[len(facts)])])
        hash_bits = thumbnail = np.zeros(0, np.uint8)
        if perceptual is not None:
            hash_bits = np.packbits(perceptual(image).hash)
            thumbnail = np.asarray(image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
        digest = hashlib.blake2b(array.tobytes(), digest_size=16).digest()
        facts.append(_Facts(digest, hash_bits.tobytes(), thumbnail, size, mode))
        readable.append(pixels)
    if not readable:
        return None, facts
    channels = torch.stack(readable).unbind(1)
    return torch.stack([channel.flatten().bincount(minlength=256) for channel in channels]), facts


def _pixels(images: Images, rows: Tensor) -> Iterator[Tensor | str]:
    """Yield each image (C, H, W), or the reason why it cannot be read."""
    if not isinstance(images, FileImages):
        yield from images.sample(rows)
        return
    for row in rows.tolist():
        try:
            yield images.decode(images.files[row])
        except InputError as error:
            about = f"{printable(str(images.files[row]))} "  # the message names key, file, reason and remedy
            yield str(error).partition(about)[2].rpartition("; ")[0] or str(error)


def _header(file: Any) -> tuple[tuple[int, int], str]:
    """Return the size (width, height) and the format and mode of a file that was decoded before."""
    with Image.open(file) as image:
        return image.size, f"{image.format}, {image.mode}"


def to_image(pixels: NDArray[np.uint8]) -> Image.Image:
    """Convert pixels (C, H, W) with 1 or 3 channels to an image; other channels are averaged."""
    if pixels.shape[0] == 3:
        return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    if pixels.shape[0] == 1:
        return Image.fromarray(pixels[0])
    return Image.fromarray(pixels.mean(0).astype(np.uint8))
