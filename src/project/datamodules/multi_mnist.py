"""MultiMNIST: two overlaid digits per image, for several labels per image."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from project.datamodules.base import Split
from project.datamodules.mnist import CHECKSUMS, MNIST
from project.runtime.seeding import generator

SIDE, DIGIT = 36, 28
CHUNK = 4096  # images that are overlaid at once


class MultiMNIST(MNIST):
    """Two overlaid MNIST digits of different classes per image (Sabour et al. 2017, sec. 6).

    Source: "Dynamic Routing Between Capsules", arXiv 1710.09829. Each digit of MNIST is shifted by up to 4
    pixels on 36×36 pixels and overlaid with another one by the larger value; the paper makes 1,000 such
    images per digit, this class one. Pairs and places are the same in every run. Labels are the 10 digits.

    Args:
        path: see `MNIST`.
        input_shape: see `ImageDataModule` (default [1, 36, 36]); other shapes need `resize`.
        num_classes: 10, the number of labels.
        base: arguments of `ImageDataModule`.
    """

    DATASET_FACTS: ClassVar = {"images": 60_000, "shape": (1, 36, 36), "classes": 10, "download": "path"}
    TARGET_TYPE: ClassVar[Any] = "multilabel"

    is_mapped = False

    def __init__(
        self, path: str, *, input_shape: Sequence[int] = (1, SIDE, SIDE), num_classes: int = 10, **base: Any
    ) -> None:
        super().__init__(path, input_shape=input_shape, num_classes=num_classes, **base)
        self.name = "multi_mnist"

    def cache_key(self, split: Split) -> Mapping[str, Any] | None:
        return None if split == "val" else {"files": sorted(CHECKSUMS.items()), "overlay": 1}

    def load_split(self, split: Split) -> tuple[Tensor, Tensor] | None:
        """Return images (N, 1, 36, 36) uint8 and labels (N, 10), 2 of them 1."""
        if (loaded := super().load_split(split)) is None:
            return None
        digits, classes = loaded
        draws = generator(0, 1 if split == "test" else 0)
        others = torch.randint(len(classes), (len(classes),), generator=draws)
        while bool((same := classes[others] == classes).any()):
            others[same] = torch.randint(len(classes), (int(same.sum()),), generator=draws)
        places = torch.randint(SIDE - DIGIT + 1, (2, 2, len(classes)), generator=draws)
        images = torch.empty(len(classes), 1, SIDE, SIDE, dtype=torch.uint8)
        for rows in torch.arange(len(classes)).split(CHUNK):
            first = place(digits[rows], *places[0, :, rows])
            images[rows] = torch.maximum(first, place(digits[others[rows]], *places[1, :, rows]))
        labels = F.one_hot(classes, 10) + F.one_hot(classes[others], 10)
        return images, labels


def place(digits: Tensor, tops: Tensor, lefts: Tensor) -> Tensor:
    """Place digits (N, 1, 28, 28) on black images (N, 1, 36, 36), at rows and columns (N,) from 0 to 8."""
    margin = SIDE - DIGIT
    padded = F.pad(digits[:, 0], (margin,) * 4)  # N, 44, 44
    windows = padded.unfold(1, SIDE, 1).unfold(2, SIDE, 1)  # N, 9, 9, 36, 36: a view
    return windows[torch.arange(len(digits)), margin - tops, margin - lefts][:, None]
