"""Random views of images for contrastive learning: crop, flip, color and grayscale, per image of a batch."""

from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from project.runtime.bounds import Range, check_arguments

GRAY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in gray (ITU-R BT.601)."""


class RandomViews:
    """Augmentation of SimCLR for small images (Chen et al. 2020, arXiv 2002.05709, appendices A and B.9).

    The jitter of brightness, contrast and saturation has the paper's ranges; the hue does not change.

    Args:
        crop_scale: smallest area of a crop, as a fraction of the image; 1: no crop [0.2].
        flip_prob: probability of a horizontal flip [0.5].
        color_jitter: strength s: factors from 1 - 0.8 s to 1 + 0.8 s, with probability 0.8; 0: none [0.5].
        grayscale_prob: probability of conversion to gray, for images of three channels [0.2].

    Raises:
        InputError: a value is out of its range.
    """

    def __init__(
        self,
        crop_scale: Annotated[float, Range(above=0, high=1)] = 0.2,
        flip_prob: Annotated[float, Range(0, 1)] = 0.5,
        color_jitter: Annotated[float, Range(0, 1.25)] = 0.5,
        grayscale_prob: Annotated[float, Range(0, 1)] = 0.2,
    ) -> None:
        check_arguments("task", RandomViews, locals())
        self.crop_scale = crop_scale
        self.flip_prob = flip_prob
        self.color_jitter = color_jitter
        self.grayscale_prob = grayscale_prob

    def __call__(self, images: Tensor, draws: torch.Generator | None = None) -> Tensor:
        """Return one view of each image, of the same shape.

        Args:
            images: (B, C, H, W) on the scale [0, 1].
            draws: generator on the images' device; None: torch's global generator.
        """

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=draws, device=images.device, dtype=images.dtype)

        images = self._crop_and_flip(images, uniform)
        if self.color_jitter:
            images = self._jitter(images, uniform)
        if self.grayscale_prob and images.shape[1] == 3:
            chosen = _column(uniform(len(images)) < self.grayscale_prob)
            images = torch.where(chosen, _gray(images), images)
        return images

    def _crop_and_flip(self, images: Tensor, uniform: Any) -> Tensor:
        """Scale a random crop, of aspect ratio 3/4 to 4/3, to the size of the image."""
        batch = len(images)
        area = self.crop_scale + (1 - self.crop_scale) * uniform(batch)
        is_cropped = self.crop_scale < 1
        stretch = ((4 / 3) ** (uniform(batch) - 0.5)) if is_cropped else torch.ones_like(area)
        width, height = (area.sqrt() * stretch).clamp(max=1), (area.sqrt() / stretch).clamp(max=1)
        shifts = (2 * uniform(2, batch) - 1) * (1 - torch.stack([width, height]))
        sign = torch.where(uniform(batch) < self.flip_prob, -1.0, 1.0).to(images.dtype)
        zero = torch.zeros_like(width)
        rows = [torch.stack([width * sign, zero, shifts[0]], 1), torch.stack([zero, height, shifts[1]], 1)]
        grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def _jitter(self, images: Tensor, uniform: Any) -> Tensor:
        """Change brightness, contrast and saturation by random factors."""
        batch, strength = len(images), 0.8 * self.color_jitter
        factors = 1 + strength * (2 * uniform(3, batch) - 1)
        jittered = (images * _column(factors[0])).clamp(0, 1)
        mean = _gray(jittered).mean(dim=(1, 2, 3), keepdim=True)
        jittered = (mean + (jittered - mean) * _column(factors[1])).clamp(0, 1)
        if images.shape[1] == 3:
            gray = _gray(jittered)
            jittered = (gray + (jittered - gray) * _column(factors[2])).clamp(0, 1)
        return torch.where(_column(uniform(batch) < 0.8), jittered, images)


def _gray(images: Tensor) -> Tensor:
    """Return (B, 1, H, W): luma for three channels, else the mean over the channels."""
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    return (images * images.new_tensor(GRAY).view(-1, 1, 1)).sum(dim=1, keepdim=True)


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
