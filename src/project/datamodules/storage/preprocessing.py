"""Preprocessing of whole sets of images, before training."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

PREPROCESSING_VERSION = 1
"""Part of the key of cached images; to be raised when scaling or graying gives other pixels."""


def preprocess(pixels: Tensor, *, gray: bool, side: tuple[int, int] | None) -> Tensor:
    """Convert (N, C, H, W) uint8 to gray and scale it to `side` (H, W), where that changes it."""
    if gray and pixels.shape[1] == 3:
        pixels = _in_chunks(pixels, to_gray)
    if side is not None and pixels.shape[2:] != side:
        pixels = _in_chunks(pixels, lambda chunk: scale_images(chunk, *side))
    return pixels


def scale_images(pixels: Tensor, height: int, width: int) -> Tensor:
    """Scale (N, C, H, W) uint8 to (N, C, height, width), bilinear, antialiased."""
    scaled = F.interpolate(
        pixels.float(), size=(height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return scaled.round().clamp(0, 255).to(torch.uint8)


def to_gray(pixels: Tensor) -> Tensor:
    """Return the luma of (N, 3, H, W) uint8 as (N, 1, H, W), weighted as in ITU-R BT.601."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return (pixels.float() * weights).sum(dim=1, keepdim=True).round().to(torch.uint8)


def channel_statistics(channel: Tensor) -> tuple[float, float]:
    """Return mean and sample standard deviation of uint8 pixels, on the scale [0, 1]."""
    counts = torch.bincount(channel.flatten(), minlength=256).double()
    values = torch.arange(256).double() / 255
    total = counts.sum()
    mean = (counts * values).sum() / total
    variance = (counts * (values - mean).square()).sum() / (total - 1).clamp(min=1)
    return mean.item(), variance.sqrt().item()


def _in_chunks(pixels: Tensor, change: Callable[[Tensor], Tensor], size: int = 4096) -> Tensor:
    # Floats of a whole set would take four times its memory.
    return torch.cat([change(chunk) for chunk in pixels.split(size)])
