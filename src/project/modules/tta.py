"""Test-time augmentation: averages logits over augmented copies of an image."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from project.errors import InputError

Network = Callable[[Tensor], Tensor]

UNSURE_BELOW = 1.0
"""Difference of the two largest logits below which `selective` augments an image."""


def tta_logits(network: Network, images: Tensor, tta: str) -> Tensor:
    """Return logits (B, K) averaged over augmented copies (Jordan 2024, arXiv 2404.00498, sec. 3.5).

    Args:
        network: maps images (B, C, H, W) to logits (B, K).
        images: images (B, C, H, W).
        tta: `none`: the image itself. `flip`: the image and its horizontal flip. `flip_translate`: the image,
            and the image shifted by one pixel to the upper left and to the lower right (with reflection
            padding), each with its horizontal flip. The two unshifted copies have weight 1/4 each, the four
            shifted copies 1/8. `selective`: `flip_translate` for the images of which the two largest logits
            differ by less than `UNSURE_BELOW`, else the image itself.

    Raises:
        InputError: unknown value of `tta`.
    """
    logits = network(images)
    if tta == "none":
        return logits
    if tta == "flip":
        return (logits + network(images.flip(-1))) / 2
    if tta == "flip_translate":
        return _flip_translate_mean(network, images, logits)
    if tta == "selective":
        return _augment_unsure(network, images, logits)
    raise InputError(f"tta={tta}: choose from none, flip, flip_translate, selective")


def static_tta(tta: str) -> str:
    """Return the augmentation of an exported network, whose computation cannot depend on its own outputs."""
    return "flip_translate" if tta == "selective" else tta


def _flip_translate_mean(network: Network, images: Tensor, logits: Tensor) -> Tensor:
    """Return the mean logits (B, K) of `flip_translate`, given the logits of the images themselves."""
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    center = (logits + network(images.flip(-1))) / 2
    down_right = _flip_mean(network, padded[:, :, :height, :width])
    up_left = _flip_mean(network, padded[:, :, 2:, 2:])
    return (center + (down_right + up_left) / 2) / 2


def _augment_unsure(network: Network, images: Tensor, logits: Tensor) -> Tensor:
    """Return the logits (B, K) of `selective`, given those of the images themselves."""
    largest = logits.float().topk(min(2, logits.shape[1])).values
    unsure = (largest[:, 0] - largest[:, -1] < UNSURE_BELOW).nonzero()[:, 0]
    if not len(unsure):
        return logits
    augmented = _flip_translate_mean(network, images[unsure], logits[unsure])
    return logits.index_copy(0, unsure, augmented.to(logits.dtype))


def _flip_mean(network: Network, images: Tensor) -> Tensor:
    return (network(images) + network(images.flip(-1))) / 2
