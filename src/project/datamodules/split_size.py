"""Size of a split, as a number or a fraction of images. Imports no torch, as checks before a run do not."""

import math


def num_images(size: float, count: int) -> int:
    """Return the number of images of a size: a fraction of `count` below 1, or a whole number; else -1."""
    if size < 1:
        return math.floor(size * count + 0.5)
    return size if isinstance(size, int) else -1
