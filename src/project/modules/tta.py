"""Several views of an image in evaluation: logits are averaged over changed copies of it."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from project.errors import InputError

Network = Callable[[Tensor], Tensor]


def mean_over_views(network: Network, images: Tensor, views: str) -> Tensor:
    """Logits (B, K) of images (B, C, H, W), averaged over views of each (Jordan 2024, arXiv 2404.00498,
    sec. 3.5).

    Args:
        network: maps images to logits.
        images: a batch.
        views: `none` is the image alone; `flip` adds its mirror image; `flip_translate` means six: the
            image, and what it is when it is shifted by a pixel to the upper left or to the lower right
            (its edge mirrored), each with its mirror image. The two of the unshifted image weigh 1/4 each,
            the four others 1/8.

    Raises:
        InputError: there are no such views.
    """
    if views == "none":
        return network(images)
    if views == "flip":
        return _mean_with_mirror(network, images)
    if views == "flip_translate":
        height, width = images.shape[2:]
        padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
        still = _mean_with_mirror(network, images)
        down_right = _mean_with_mirror(network, padded[:, :, :height, :width])
        up_left = _mean_with_mirror(network, padded[:, :, 2:, 2:])
        return (still + (down_right + up_left) / 2) / 2
    raise InputError(f"test_views={views}: choose from none, flip, flip_translate")


def _mean_with_mirror(network: Network, images: Tensor) -> Tensor:
    return (network(images) + network(images.flip(-1))) / 2
