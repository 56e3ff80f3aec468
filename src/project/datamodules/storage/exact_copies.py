"""Exact copies between two sets of images in memory."""

import numpy as np
from numpy.typing import NDArray

SAMPLED_BYTES = 64
"""Bytes from the middle of each image that are compared first: one page of a memory-mapped image."""


def find_copies(
    first: NDArray[np.uint8], second: NDArray[np.uint8], rows: NDArray[np.int64] | None = None
) -> list[tuple[int, int]]:
    """Find the images of `second` (M, P) that equal an image of `first` (N, P), pixel by pixel.

    Bytes from the middle are compared first; only images that agree in them are compared completely.

    Args:
        first: images, a row each.
        second: images, a row each.
        rows: rows (N',) of `first` to compare [all].

    Returns:
        Position in `rows` (the first, if several images are equal) and row in `second` of each copy.
    """
    if first.shape[1] != second.shape[1]:
        return []
    rows = np.arange(len(first)) if rows is None else rows
    keys, other_keys = _keys(first)[rows], _keys(second)
    positions = np.flatnonzero(np.isin(keys, other_keys))
    position_of = {first[rows[position]].tobytes(): int(position) for position in positions[::-1]}
    candidates = np.flatnonzero(np.isin(other_keys, keys))
    pairs = ((position_of.get(second[row].tobytes()), int(row)) for row in candidates)
    return [(position, row) for position, row in pairs if position is not None]


def _keys(rows: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Hash the middle of each row (N, P) to an integer (N,)."""
    width = min(SAMPLED_BYTES, rows.shape[1])
    start = (rows.shape[1] - width) // 2
    middle = np.zeros((len(rows), SAMPLED_BYTES), np.uint8)
    middle[:, :width] = rows[:, start : start + width]
    factors = np.random.default_rng(0).integers(1, 2**63, SAMPLED_BYTES // 8, dtype=np.uint64) | np.uint64(1)
    return (middle.view(np.uint64) * factors).sum(1, dtype=np.uint64)
