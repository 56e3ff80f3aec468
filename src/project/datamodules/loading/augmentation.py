"""Augmentation of whole batches: each image draws its own, a batch costs a few tensor operations."""

import math
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from project.errors import InputError
from project.runtime.bounds import Range
from project.runtime.seeding import generator as seeded

FLIPS = 1_717_536_368
"""Key of the draws that alternating flips begin with, unlike any epoch's number."""


class Augmentation:
    """Random changes of normalized training images, in the order of the arguments; 0 switches one off.

    Pixels that come from outside an image are 0, the data set's mean, unless `crop_mode` says otherwise.

    Args:
        num_classes: number of classes, for mixed targets.
        crop_padding: shift by up to so many pixels in each direction (pad, then crop).
        crop_mode: what a shift brings in: `zeros`, or by `reflect` the image, mirrored at its edge.
        flip: probability of a horizontal flip.
        flip_mode: `random` draws anew each time; with `alternating` an image is flipped in every other epoch,
            and `flip` of them in the first (Jordan 2024, arXiv 2404.00498, sec. 3.6).
        rotate: largest rotation, degrees.
        translate: largest shift, as a fraction of the side; between pixels, unlike `crop_padding`.
        scale: largest change of size, as a fraction: 0.1 draws from 0.9 to 1.1.
        shear: largest shear along the rows, degrees.
        erase: side of the erased square, pixels (DeVries and Taylor 2017, cutout).
        erase_probability: share of images from which a square is erased.
        mixup: alpha of the Beta distribution of mixing weights (Zhang et al. 2018, sec. 2).
        cutmix: alpha of the Beta distribution of areas (Yun et al. 2019, sec. 3.1). With both, each
            batch draws one of the two.

    Raises:
        InputError: a value is out of its range.
    """

    def __init__(
        self,
        num_classes: Annotated[int, Range(2)],
        crop_padding: Annotated[int, Range(0)] = 0,
        crop_mode: Literal["zeros", "reflect"] = "zeros",
        flip: Annotated[float, Range(0, 1)] = 0.0,
        flip_mode: Literal["random", "alternating"] = "random",
        rotate: Annotated[float, Range(0, 180)] = 0.0,
        translate: Annotated[float, Range(0, 1)] = 0.0,
        scale: Annotated[float, Range(0, 0.99)] = 0.0,
        shear: Annotated[float, Range(0, 89)] = 0.0,
        erase: Annotated[int, Range(0)] = 0,
        erase_probability: Annotated[float, Range(0, 1)] = 1.0,
        mixup: Annotated[float, Range(0)] = 0.0,
        cutmix: Annotated[float, Range(0)] = 0.0,
    ) -> None:
        for name, value, largest in (
            ("crop_padding", crop_padding, math.inf),
            ("flip", flip, 1),
            ("rotate", rotate, 180),
            ("translate", translate, 1),
            ("scale", scale, 0.99),
            ("shear", shear, 89),
            ("erase", erase, math.inf),
            ("erase_probability", erase_probability, 1),
            ("mixup", mixup, math.inf),
            ("cutmix", cutmix, math.inf),
        ):
            if not 0 <= value <= largest:
                below = "" if math.isinf(largest) else f" and at most {largest}"
                raise InputError(f"augment.{name}={value}: must be at least 0{below}")
        for name, word, allowed in (
            ("crop_mode", crop_mode, ("zeros", "reflect")),
            ("flip_mode", flip_mode, ("random", "alternating")),
        ):
            if word not in allowed:
                raise InputError(f"augment.{name}={word}: choose from {', '.join(allowed)}")
        self.num_classes = num_classes
        self.crop_padding = crop_padding
        self.crop_mode = crop_mode
        self.flip = flip
        self.flip_mode = flip_mode
        self.rotate = rotate
        self.translate = translate
        self.scale = scale
        self.shear = shear
        self.erase = erase
        self.erase_probability = erase_probability
        self.mixup = mixup
        self.cutmix = cutmix

    @property
    def active(self) -> bool:
        """Whether any change is switched on."""
        return bool(self.crop_padding or self.flip or self._affine or self._erases or self._mixes)

    @property
    def _affine(self) -> bool:
        return bool(self.rotate or self.translate or self.scale or self.shear)

    @property
    def _erases(self) -> bool:
        return bool(self.erase and self.erase_probability)

    @property
    def _mixes(self) -> bool:
        return bool(self.mixup or self.cutmix)

    def flipped(self, count: int, seed: int, epoch: int) -> Tensor | None:
        """Which of the `count` images of a data set are flipped in this epoch, (count,) bool on the CPU; None
        if each batch draws that.
        """
        if not self.flip or self.flip_mode != "alternating":
            return None
        first = torch.rand(count, generator=seeded(seed, FLIPS)) < self.flip
        return first ^ bool(epoch % 2)

    def __call__(
        self, images: Tensor, labels: Tensor, generator: torch.Generator, flipped: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Change a batch.

        Args:
            images: (B, C, H, W), normalized.
            labels: (B,) long.
            generator: on the images' device.
            flipped: (B,) bool, which images to flip, where `flipped` has decided that.

        Returns:
            Images (B, C, H, W), and targets: the labels, or probabilities (B, K) if images were mixed.
        """
        if self.crop_padding:
            images = random_crop(images, self.crop_padding, generator, self.crop_mode)
        if flipped is not None:
            images = flip_some(images, flipped)
        elif self.flip:
            images = random_flip(images, self.flip, generator)
        if self._affine:
            images = random_affine(
                images,
                generator,
                rotate=self.rotate,
                translate=self.translate,
                scale=self.scale,
                shear=self.shear,
            )
        if self._erases:
            images = random_erase(images, self.erase, self.erase_probability, generator)
        if self._mixes:
            return self._mix(images, labels, generator)
        return images, labels

    def _mix(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        targets = F.one_hot(labels, self.num_classes).to(images.dtype)  # B, K
        # Beta variates take rejection sampling, which torch offers only without a generator.
        numpy_draws = np.random.default_rng(generator.initial_seed())
        use_cutmix = bool(self.cutmix) and (not self.mixup or numpy_draws.random() < 0.5)
        alpha = self.cutmix if use_cutmix else self.mixup
        kept = torch.from_numpy(numpy_draws.beta(alpha, alpha, len(images)).astype(np.float32))
        mix = cutmix if use_cutmix else mixup
        return mix(images, targets, kept.to(images.device), generator)


def random_crop(images: Tensor, padding: int, generator: torch.Generator, mode: str = "zeros") -> Tensor:
    """Shift each image (B, C, H, W) by up to `padding` pixels each way.

    What comes in from outside is zeros, or with mode `reflect` the image itself, mirrored at its edge.

    Raises:
        InputError: the image is too small to be mirrored so far.
    """
    batch, _, height, width = images.shape
    if mode == "reflect" and padding >= min(height, width):
        raise InputError(
            f"augment.crop_padding={padding}: must be below the image's side, {min(height, width)}, with "
            "augment.crop_mode=reflect"
        )
    padded = F.pad(images, (padding,) * 4, mode="constant" if mode == "zeros" else mode)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # B, C, 2p + 1, 2p + 1, H, W: a view
    shifts = torch.randint(2 * padding + 1, (2, batch), generator=generator, device=images.device)
    return windows[torch.arange(batch, device=images.device), :, shifts[0], shifts[1]]


def random_flip(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Mirror each image (B, C, H, W) left to right with the given probability."""
    return flip_some(images, _chance(images, probability, generator))


def flip_some(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror those images (B, C, H, W) left to right for which `flipped` (B,) is true."""
    return torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)


def random_affine(
    images: Tensor,
    generator: torch.Generator,
    *,
    rotate: float,
    translate: float,
    scale: float,
    shear: float,
) -> Tensor:
    """Rotate (degrees), shift (fraction of the side), scale and shear each image (B, C, H, W) at random,
    with bilinear interpolation.
    """
    batch, _, height, width = images.shape
    draws = torch.rand((5, batch), generator=generator, device=images.device) * 2 - 1
    angle = draws[0] * math.radians(rotate)
    slope = torch.tan(draws[1] * math.radians(shear))
    zoom = 1 / (1 + draws[2] * scale)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    # The grid's axes run from -1 to 1 whatever the aspect: lengths along x and y differ by H / W.
    aspect = height / width
    row_x = torch.stack([cos, (slope * cos - sin) * aspect, 2 * translate * draws[3]], dim=1)
    row_y = torch.stack([sin / aspect, slope * sin + cos, 2 * translate * draws[4]], dim=1)
    matrices = torch.stack([row_x, row_y], dim=1).to(images.dtype)  # B, 2, 3
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)  # B, H, W, 2
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def random_erase(images: Tensor, side: int, probability: float, generator: torch.Generator) -> Tensor:
    """Set a square around a random pixel of each image (B, C, H, W) to zero; it may reach over the edge."""
    batch, _, height, width = images.shape
    centers = torch.rand((2, batch), generator=generator, device=images.device)
    inside_y = _spans(centers[0], side, height)  # B, H
    inside_x = _spans(centers[1], side, width)  # B, W
    erased = inside_y[:, None, :, None] & inside_x[:, None, None, :]  # B, 1, H, W
    if probability < 1:
        erased &= _chance(images, probability, generator).view(-1, 1, 1, 1)
    return images.masked_fill(erased, 0.0)


def mixup(images: Tensor, targets: Tensor, kept: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blend each image (B, C, H, W) and its target (B, K) with another's, keeping the share `kept` (B,)."""
    partners = torch.randperm(len(images), generator=generator, device=images.device)
    mixed = images.lerp(images[partners], 1 - kept.view(-1, 1, 1, 1))
    return mixed, targets.lerp(targets[partners], 1 - kept.view(-1, 1))


def cutmix(
    images: Tensor, targets: Tensor, kept: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Replace a rectangle of each image (B, C, H, W) by another's; targets (B, K) follow the area.

    `kept` (B,) is the area that stays, before the rectangle is cut off at the image's edge.
    """
    batch, _, height, width = images.shape
    partners = torch.randperm(batch, generator=generator, device=images.device)
    centers = torch.rand((2, batch), generator=generator, device=images.device)
    cut = (1 - kept).sqrt()  # side of the rectangle as a fraction of the image's
    inside_y = _spans(centers[0], cut * height, height)  # B, H
    inside_x = _spans(centers[1], cut * width, width)  # B, W
    pasted = inside_y[:, None, :, None] & inside_x[:, None, None, :]  # B, 1, H, W
    mixed = torch.where(pasted, images[partners], images)
    share = pasted.float().mean(dim=(1, 2, 3)).view(-1, 1)  # B, 1
    return mixed, targets.lerp(targets[partners], share)


def _spans(centers: Tensor, length: Tensor | float, size: int) -> Tensor:
    """Which of `size` pixels lie within `length` pixels around each center in [0, 1]: (B, size) bool."""
    first = (centers * size - length / 2).round()  # B
    pixels = torch.arange(size, device=centers.device)
    return (pixels >= first[:, None]) & (pixels < (first + length).round()[:, None])


def _chance(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    return torch.rand(len(images), generator=generator, device=images.device) < probability
