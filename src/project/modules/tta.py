"""Test-time augmentation: averages logits over augmented copies of an image."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from project.errors import InputError

Network = Callable[[Tensor], Tensor]


def tta_logits(network: Network, images: Tensor, tta: str) -> Tensor:
    """Return logits (B, K) averaged over augmented copies (Jordan 2024, arXiv 2404.00498, sec. 3.5).

    Args:
        network: maps images (B, C, H, W) to logits (B, K).
        images: images (B, C, H, W).
        tta: `none`: the image itself. `flip`: the image and its horizontal flip. `flip_translate`: the image,
            and the image shifted by one pixel to the upper left and to the lower right (with reflection
            padding), each with its horizontal flip. The two unshifted copies have weight 1/4 each, the four
            shifted copies 1/8.

    Raises:
        InputError: unknown value of `tta`.
    """
    if tta == "none":
        return network(images)
    if tta == "flip":
        return _flip_mean(network, images)
    if tta == "flip_translate":
        height, width = images.shape[2:]
        padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
        center = _flip_mean(network, images)
        down_right = _flip_mean(network, padded[:, :, :height, :width])
        up_left = _flip_mean(network, padded[:, :, 2:, 2:])
        return (center + (down_right + up_left) / 2) / 2
    raise InputError(f"tta={tta}: choose from none, flip, flip_translate")


def _flip_mean(network: Network, images: Tensor) -> Tensor:
    return (network(images) + network(images.flip(-1))) / 2
