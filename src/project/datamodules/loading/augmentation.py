"""Augmentation of batches: random parameters per image, a few tensor operations per batch."""

import math
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from project.errors import InputError
from project.runtime.bounds import Range, check_arguments
from project.runtime.seeding import generator as seeded

if TYPE_CHECKING:
    from project.datamodules.loading.policies import Policy

FLIP_KEY = 1_717_536_368
"""Seed key of the alternating flip schedule; larger than any epoch number, to keep streams apart."""

SIZE_STEP = 4
"""Progressive resizing uses multiples of this side, pixels: each new shape costs a GPU time."""


class Augmentation:
    """Random augmentations of training images, applied in the order of the arguments.

    A policy changes uint8 images, everything else normalized images. The value 0 disables an augmentation.
    Pixels from outside an image are 0, the mean of the data set, except with `crop_mode=reflect`; a policy
    fills with black.

    Args:
        num_classes: number of classes, for mixed targets.
        policy: `randaugment` (Cubuk et al. 2020), `trivialaugment` (TrivialAugmentWide, Müller and Hutter
            2021) or `augmix` (Hendrycks et al. 2020), with torchvision's operations; images have 1 or 3
            channels (default none).
        policy_num_ops: operations per image of `randaugment` (default 2).
        policy_magnitude: magnitude of `randaugment`, 0 to 30 (default 9).
        policy_severity: number of magnitudes of `augmix`, 1 to 10 (default 3).
        random_crop_padding: padding on each side before a random crop to the original size, pixels
            (default 0).
        crop_mode: padding mode, `zeros` or `reflect` (default zeros).
        flip_prob: probability of a horizontal flip (default 0).
        flip_schedule: `random` draws flips in each epoch; `alternating` flips `flip_prob` of the images in
            the first epoch, and from then on each image in every other epoch (Jordan 2024, arXiv 2404.00498,
            sec. 3.6) (default random).
        rotate: maximum rotation, degrees (default 0).
        translate: maximum shift, as a fraction of the side, interpolated between pixels (default 0).
        scale: maximum relative change of size: 0.1 draws factors from 0.9 to 1.1 (default 0).
        shear: maximum shear along the rows, degrees (default 0).
        random_erasing_size: side of the erased square, pixels (cutout, DeVries and Taylor 2017) (default 0).
        random_erasing_prob: probability of erasing a square from an image (default 1).
        mixup: alpha of the Beta distribution of mixing weights (Zhang et al. 2018, sec. 2) (default 0).
        cutmix: alpha of the Beta distribution of kept areas (Yun et al. 2019, sec. 3.1); if `mixup` is also
            set, each batch draws one of the two (default 0).
        initial_size_fraction: side of the images in the first epoch, relative to the full side; it grows
            linearly (progressive resizing, Tan and Le 2021, arXiv 2104.00298, sec. 4.2) (default 1).
        full_size_epoch: first epoch with images of full size, counted from 0 (default 0).

    Raises:
        InputError: a value is out of its range.
    """

    def __init__(
        self,
        num_classes: Annotated[int, Range(1)],
        policy: Literal["none", "randaugment", "trivialaugment", "augmix"] = "none",
        policy_num_ops: Annotated[int, Range(1)] = 2,
        policy_magnitude: Annotated[int, Range(0, 30)] = 9,
        policy_severity: Annotated[int, Range(1, 10)] = 3,
        random_crop_padding: Annotated[int, Range(0)] = 0,
        crop_mode: Literal["zeros", "reflect"] = "zeros",
        flip_prob: Annotated[float, Range(0, 1)] = 0.0,
        flip_schedule: Literal["random", "alternating"] = "random",
        rotate: Annotated[float, Range(0, 180)] = 0.0,
        translate: Annotated[float, Range(0, 1)] = 0.0,
        scale: Annotated[float, Range(0, 0.99)] = 0.0,
        shear: Annotated[float, Range(0, 89)] = 0.0,
        random_erasing_size: Annotated[int, Range(0)] = 0,
        random_erasing_prob: Annotated[float, Range(0, 1)] = 1.0,
        mixup: Annotated[float, Range(0)] = 0.0,
        cutmix: Annotated[float, Range(0)] = 0.0,
        initial_size_fraction: Annotated[float, Range(above=0, high=1)] = 1.0,
        full_size_epoch: Annotated[int, Range(0)] = 0,
    ) -> None:
        check_arguments("augment", Augmentation, locals())
        self.num_classes = num_classes
        self.policy = _make_policy(policy, policy_num_ops, policy_magnitude, policy_severity)
        self.initial_size_fraction = initial_size_fraction if full_size_epoch else 1.0
        self.full_size_epoch = full_size_epoch
        self.random_crop_padding = random_crop_padding
        self.crop_mode = crop_mode
        self.flip_prob = flip_prob
        self.flip_schedule = flip_schedule
        self.affine = {"rotate": rotate, "translate": translate, "scale": scale, "shear": shear}
        self.random_erasing_size = random_erasing_size if random_erasing_prob else 0
        self.random_erasing_prob = random_erasing_prob
        self.mixup = mixup
        self.cutmix = cutmix
        self.is_affine = any(self.affine.values())
        self.is_mixing = bool(mixup or cutmix)
        is_spatial = random_crop_padding or flip_prob or self.is_affine or self.random_erasing_size
        self.is_active = bool(self.policy or is_spatial or self.is_mixing or self.initial_size_fraction < 1)

    def image_size(self, size: tuple[int, int], epoch: int) -> tuple[int, int]:
        """Return the size (H, W) of training images in an epoch, for images of a full size.

        Smaller sides are multiples of `SIZE_STEP` pixels.
        """
        if epoch >= self.full_size_epoch:
            return size
        first = self.initial_size_fraction
        fraction = first + (1 - first) * epoch / self.full_size_epoch
        height, width = (min(side, max(1, round(side * fraction / SIZE_STEP)) * SIZE_STEP) for side in size)
        return height, width

    def apply_policy(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Apply the policy to images (B, C, H, W) uint8; without a policy, return them."""
        return pixels if self.policy is None else self.policy(pixels, generator.initial_seed())

    def epoch_flips(self, count: int, seed: int, epoch: int) -> Tensor | None:
        """Return a mask (count,) of the images to flip in an epoch of the alternating schedule.

        Returns None for the random schedule, where `__call__` draws the flips of each batch.
        """
        if not self.flip_prob or self.flip_schedule != "alternating":
            return None
        first = torch.rand(count, generator=seeded(seed, FLIP_KEY)) < self.flip_prob
        return first ^ bool(epoch % 2)

    def __call__(
        self, images: Tensor, labels: Tensor, generator: torch.Generator, flipped: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            images: (B, C, H, W), normalized.
            labels: class indices (B,) long, or targets (B, K) float.
            generator: on the images' device.
            flipped: (B,) bool mask of images to flip, from `epoch_flips` (default None: drawn here).

        Returns:
            Images (B, C, H, W), and targets: `labels`, or mixed targets (B, K) with mixup or cutmix.
        """
        if self.random_crop_padding:
            images = random_crop(images, self.random_crop_padding, generator, self.crop_mode)
        if self.flip_prob:
            if flipped is None:
                flipped = _draw(images, self.flip_prob, generator)
            images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)
        if self.is_affine:
            images = random_affine(images, generator, **self.affine)
        if self.random_erasing_size:
            images = random_erase(images, self.random_erasing_size, self.random_erasing_prob, generator)
        if self.is_mixing:
            return self._mix(images, labels, generator)
        return images, labels

    def _mix(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        targets = F.one_hot(labels, self.num_classes) if labels.ndim == 1 else labels
        targets = targets.to(images.dtype)  # B, K
        # torch cannot draw Beta variates from a generator.
        numpy_draws = np.random.default_rng(generator.initial_seed())
        use_cutmix = bool(self.cutmix) and (not self.mixup or numpy_draws.random() < 0.5)
        alpha = self.cutmix if use_cutmix else self.mixup
        kept = torch.from_numpy(numpy_draws.beta(alpha, alpha, len(images)).astype(np.float32))
        mix = cutmix if use_cutmix else mixup
        return mix(images, targets, kept.to(images.device), generator)


def _make_policy(name: str, num_ops: int, magnitude: int, severity: int) -> "Policy | None":
    """Return the policy of a name; importing torchvision's transforms takes time."""
    if name == "none":
        return None
    from project.datamodules.loading import policies

    if name == "randaugment":
        return policies.RandAugment(num_ops, magnitude)
    return policies.TrivialAugment() if name == "trivialaugment" else policies.AugMix(severity)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale images (B, C, H, W) to a size (H, W), without aliasing."""
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)


def random_crop(images: Tensor, padding: int, generator: torch.Generator, mode: str = "zeros") -> Tensor:
    """Pad each image (B, C, H, W), and crop it at a random position to its original size.

    Raises:
        InputError: `mode` is `reflect`, and `padding` is not below the image's side.
    """
    batch, _, height, width = images.shape
    if mode == "reflect" and padding >= min(height, width):
        raise InputError(
            f"augment.random_crop_padding={padding}: must be below the side of the images, "
            f"{min(height, width)}, with augment.crop_mode=reflect; lower it, or set augment.crop_mode=zeros"
        )
    padded = F.pad(images, (padding,) * 4, mode="constant" if mode == "zeros" else mode)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # B, C, 2p + 1, 2p + 1, H, W: a view
    shifts = torch.randint(2 * padding + 1, (2, batch), generator=generator, device=images.device)
    return windows[torch.arange(batch, device=images.device), :, shifts[0], shifts[1]]


def random_affine(
    images: Tensor,
    generator: torch.Generator,
    *,
    rotate: float,
    translate: float,
    scale: float,
    shear: float,
) -> Tensor:
    """Rotate, shift, scale and shear each image (B, C, H, W); arguments as in `Augmentation`."""
    batch, _, height, width = images.shape
    draws = torch.rand((5, batch), generator=generator, device=images.device) * 2 - 1
    angle = draws[0] * math.radians(rotate)
    slope = torch.tan(draws[1] * math.radians(shear))
    zoom = 1 / (1 + draws[2] * scale)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    # Both axes of the grid span -1 to 1, so a unit of y is H / W times as long as a unit of x.
    aspect = height / width
    row_x = torch.stack([cos, (slope * cos - sin) * aspect, 2 * translate * draws[3]], dim=1)
    row_y = torch.stack([sin / aspect, slope * sin + cos, 2 * translate * draws[4]], dim=1)
    matrices = torch.stack([row_x, row_y], dim=1).to(images.dtype)  # B, 2, 3
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)  # B, H, W, 2
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def random_erase(images: Tensor, side: int, probability: float, generator: torch.Generator) -> Tensor:
    """Set a square around a random pixel of each image (B, C, H, W) to zero, clipped at the image's edge."""
    batch, _, height, width = images.shape
    centers = torch.rand((2, batch), generator=generator, device=images.device)
    erased = _rectangles(centers, side, side, height, width)
    if probability < 1:
        erased &= _draw(images, probability, generator).view(-1, 1, 1, 1)
    return images.masked_fill(erased, 0.0)


def mixup(images: Tensor, targets: Tensor, kept: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blend each image (B, C, H, W) and target (B, K) with those of a random other image of the batch.

    `kept` (B,) is the weight of the image itself.
    """
    partners = torch.randperm(len(images), generator=generator, device=images.device)
    mixed = images.lerp(images[partners], 1 - kept.view(-1, 1, 1, 1))
    return mixed, targets.lerp(targets[partners], 1 - kept.view(-1, 1))


def cutmix(
    images: Tensor, targets: Tensor, kept: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Replace a random rectangle of each image (B, C, H, W) by that of another image of the batch.

    Targets (B, K) are weighted by the pasted area. `kept` (B,) is the fraction of the area that is kept,
    before the rectangle is clipped at the image's edge.
    """
    batch, _, height, width = images.shape
    partners = torch.randperm(batch, generator=generator, device=images.device)
    centers = torch.rand((2, batch), generator=generator, device=images.device)
    side = (1 - kept).sqrt()  # of the rectangle, as a fraction of the image side
    pasted = _rectangles(centers, side * height, side * width, height, width)
    mixed = torch.where(pasted, images[partners], images)
    area = pasted.float().mean(dim=(1, 2, 3)).view(-1, 1)  # B, 1
    return mixed, targets.lerp(targets[partners], area)


def _rectangles(
    centers: Tensor, tall: Tensor | float, wide: Tensor | float, height: int, width: int
) -> Tensor:
    """Return masks (B, 1, H, W) of rectangles, `tall` × `wide` pixels, around `centers` (2, B) in [0, 1]."""
    rows, columns = _spans(centers[0], tall, height), _spans(centers[1], wide, width)
    return rows[:, None, :, None] & columns[:, None, None, :]


def _spans(centers: Tensor, length: Tensor | float, size: int) -> Tensor:
    """Return a mask (B, size) of the `length` pixels around each center."""
    first = (centers * size - length / 2).round()  # B
    pixels = torch.arange(size, device=centers.device)
    return (pixels >= first[:, None]) & (pixels < (first + length).round()[:, None])


def _draw(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    return torch.rand(len(images), generator=generator, device=images.device) < probability
