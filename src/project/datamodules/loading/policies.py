"""Augmentation policies of torchvision for batches of uint8 images, with draws from a seed.

torchvision draws one operation for a batch, from torch's global generator. Here each image has its own draws,
which follow from a seed. Images with the same operation and magnitude are changed by one call. Operations and
magnitudes are those of torchvision's classes, whose private names only this file uses. Tested with
torchvision 0.29.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

SEED_KEY = 0x706F6C69
"""Seed key of policies, which keeps their stream apart from those of mixup and cutmix."""
AUGMIX_BINS = 10
MAX_CHAIN_DEPTH = 3
"""Constants of `torchvision.transforms.v2.AugMix`: magnitudes per operation, operations per chain."""


class Operation(NamedTuple):
    """Change of one image.

    Args:
        name: operation in torchvision's table, such as `ShearX`.
        magnitude: its magnitude, with a sign; 0 for an operation without magnitudes.
    """

    name: str
    magnitude: float


class Policy(ABC):
    """Random operations on uint8 images.

    Args:
        transform: transform of torchvision with the table of operations.
        num_bins: number of magnitudes of each operation.
    """

    def __init__(self, transform: Any, num_bins: int) -> None:
        self.transform = transform
        self.num_bins = num_bins
        self._magnitudes = lru_cache(maxsize=8)(self._compute_magnitudes)

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        """Return changed images (B, C, H, W) uint8; C is 1 or 3. The draws depend only on the seed."""
        _, _, height, width = images.shape
        return self.change(images, np.random.default_rng((seed, SEED_KEY)), (height, width))

    @abstractmethod
    def change(self, images: Tensor, draws: np.random.Generator, size: tuple[int, int]) -> Tensor:
        """Draw the operations of images (B, C, H, W) of `size` (H, W), and apply them."""

    def draw(
        self, count: int, bins: Sequence[int], draws: np.random.Generator, size: tuple[int, int]
    ) -> list[Operation]:
        """Draw one operation for each of `count` images, with a magnitude of `bins` and a random sign."""
        names, table, signed = self._magnitudes(size)
        chosen = draws.integers(len(names), size=count).tolist()
        places = draws.choice(bins, size=count).tolist()
        signs = np.where(draws.random(count) < 0.5, -1.0, 1.0).tolist()
        return [
            Operation(names[name], table[name][place] * (sign if signed[name] else 1.0))
            for name, place, sign in zip(chosen, places, signs, strict=True)
        ]

    def apply(self, images: Tensor, operations: Sequence[Operation]) -> Tensor:
        """Apply one operation to each image (B, C, H, W)."""
        groups: dict[Operation, list[int]] = {}
        for place, operation in enumerate(operations):
            if operation.name != "Identity":
                groups.setdefault(operation, []).append(place)
        changed = images.clone()
        for (name, magnitude), places in groups.items():
            rows = torch.tensor(places, device=images.device)
            changed[rows] = self.transform._apply_image_or_video_transform(
                images[rows],
                name,
                magnitude,
                interpolation=self.transform.interpolation,
                fill=self.transform._fill,
            )
        return changed

    def _compute_magnitudes(self, size: tuple[int, int]) -> tuple[list[str], list[list[float]], list[bool]]:
        """Return names, magnitudes by bin, and signs of the operations on images of a size (H, W)."""
        space = self.transform._AUGMENTATION_SPACE
        table = []
        for magnitudes_of, _ in space.values():
            magnitudes = magnitudes_of(self.num_bins, *size)
            table.append([0.0] * self.num_bins if magnitudes is None else magnitudes.tolist())
        return list(space), table, [signed for _, signed in space.values()]


class RandAugment(Policy):
    """A number of random operations of one magnitude (Cubuk et al. 2020, arXiv 1909.13719).

    Args:
        num_ops: operations per image [2].
        magnitude: bin of the magnitude, 0 to 30 [9].
    """

    def __init__(self, num_ops: int = 2, magnitude: int = 9) -> None:
        transform = v2.RandAugment(num_ops, magnitude)
        super().__init__(transform, transform.num_magnitude_bins)

    def change(self, images: Tensor, draws: np.random.Generator, size: tuple[int, int]) -> Tensor:
        for _ in range(self.transform.num_ops):
            images = self.apply(images, self.draw(len(images), [self.transform.magnitude], draws, size))
        return images


class TrivialAugment(Policy):
    """One random operation of a random magnitude: TrivialAugmentWide (Müller and Hutter 2021)."""

    def __init__(self) -> None:
        transform = v2.TrivialAugmentWide()
        super().__init__(transform, transform.num_magnitude_bins)

    def change(self, images: Tensor, draws: np.random.Generator, size: tuple[int, int]) -> Tensor:
        return self.apply(images, self.draw(len(images), range(self.num_bins), draws, size))


class AugMix(Policy):
    """Random mixture of an image and three chains of random operations (Hendrycks et al. 2020).

    Args:
        severity: number of magnitudes to draw from, 1 to 10 [3].
    """

    def __init__(self, severity: int = 3) -> None:
        super().__init__(v2.AugMix(severity), AUGMIX_BINS)

    def change(self, images: Tensor, draws: np.random.Generator, size: tuple[int, int]) -> Tensor:
        count, chains = len(images), self.transform.mixture_width
        mixed = draws.dirichlet([self.transform.alpha] * 2, count)  # B, 2: original, chains
        weights = draws.dirichlet([self.transform.alpha] * chains, count) * mixed[:, 1:]  # B, chains
        depths = draws.integers(1, MAX_CHAIN_DEPTH + 1, size=chains * count)
        steps = [
            self.draw(chains * count, range(self.transform.severity), draws, size)
            for _ in range(MAX_CHAIN_DEPTH)
        ]
        operations = [
            [
                operation if step < depth else Operation("Identity", 0.0)
                for operation, depth in zip(drawn, depths, strict=True)
            ]
            for step, drawn in enumerate(steps)
        ]
        return self.mix(images, np.concatenate([mixed[:, :1], weights], axis=1), operations)

    def mix(self, images: Tensor, weights: np.ndarray, operations: Sequence[Sequence[Operation]]) -> Tensor:
        """Mix images (B, C, H, W) with their chains.

        Args:
            images: uint8.
            weights: (B, 1 + chains) of the image and of each chain.
            operations: for each step of the chains, an operation for each image of the first chain, then of
                the second and so on.
        """
        chains = images.repeat(weights.shape[1] - 1, 1, 1, 1)
        for step in operations:
            chains = self.apply(chains, step)
        shares = torch.as_tensor(weights, dtype=torch.float32, device=images.device).T[..., None, None, None]
        mixture = shares[0] * images
        for share, chain in zip(shares[1:], chains.split(len(images)), strict=True):
            mixture.add_(share * chain)
        return mixture.to(images.dtype)
