"""Exact and near duplicates among images, found by digests and perceptual hashes."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NUM_BANDS, BAND_BITS = 9, 7
"""Parts of a hash of 64 bits: hashes that differ in fewer bits than there are parts agree in one part."""
MAX_DISTANCE = NUM_BANDS - 1
"""Bits in which the hashes of near duplicates differ at most."""
SIMILARITIES = (0.95, 0.975, 0.9875, 0.99375, 0.996875, 0.9984375)
"""Candidates for the least correlation of the thumbnails of near duplicates; their distances to 1 halve."""
WIDE_SIMILARITIES = (0.8, 0.9)
"""Correlations at which pairs of random images are counted, in the same series."""
NUM_RANDOM = 2000
"""Random images whose pairs are counted."""
MIN_RATIO = 4.0
"""Least factor by which the number of pairs falls when their distance halves, if few images are similar."""
MAX_FALSE_FRACTION = 0.2
"""Largest estimated fraction of pairs of distinct images among near duplicates."""
BLOCK = 2**16
"""Pairs whose thumbnails are compared at once."""


class Pair(NamedTuple):
    """Two images that are equal, or nearly.

    Args:
        first: index of an image.
        second: index of another image.
        is_exact: all pixels are equal.
        distance: number of bits in which the perceptual hashes differ.
        similarity: correlation of the thumbnails, at most 1.
    """

    first: int
    second: int
    is_exact: bool
    distance: int
    similarity: float


class Found(NamedTuple):
    """Pairs of duplicates of a data set.

    Args:
        pairs: exact copies, then near duplicates, most similar first.
        least: least similarity of near duplicates; above 1 if even the most similar pairs may be distinct.
        num_similar: number of pairs of different images that reach the lowest of `SIMILARITIES`.
    """

    pairs: list[Pair]
    least: float
    num_similar: int


def find_duplicates(
    digests: Sequence[bytes], hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8]
) -> Found:
    """Find the pairs of images that are equal or nearly equal.

    Of several equal images, each is paired with the first, and only the first is compared with others. Hashes
    are compared by an index of their parts (Norouzi et al. 2012, "Fast Search in Hamming Space with Multi-
    Index Hashing", sec. 2), so that a large data set does not need all pairs. Pairs of similar hashes are
    near duplicates if their thumbnails correlate (see `least_similarity`).

    Args:
        digests: digest of the pixels of each image.
        hashes: perceptual hash of each image (N,) of 64 bits; empty: only exact copies are searched.
        thumbnails: gray thumbnails (N, H, W) uint8.
    """
    first_of: dict[bytes, int] = {}
    exact = []
    for index, digest in enumerate(digests):
        if (first := first_of.setdefault(digest, index)) != index:
            exact.append(Pair(first, index, True, 0, 1.0))
    if not len(hashes):
        return Found(exact, SIMILARITIES[0], 0)
    different = np.array(list(first_of.values()))
    parts, counts = [np.zeros((4, 0))], np.zeros(len(SIMILARITIES), np.int64)
    for firsts, seconds, distances in similar_hashes(hashes[different]):
        firsts, seconds = different[firsts], different[seconds]
        similarities = _correlations(thumbnails, firsts, seconds)
        counts += (similarities[:, None] >= SIMILARITIES).sum(0)
        similar = np.stack([firsts, seconds, distances, similarities])
        parts.append(similar[:, similarities >= SIMILARITIES[0]])
    similar = np.concatenate(parts, axis=1)
    wide = _count_random(thumbnails[different])
    least = least_similarity(wide, counts.tolist(), len(different))
    near = [
        Pair(int(first), int(second), False, int(distance), similarity)
        for first, second, distance, similarity in similar[:, similar[3] >= least].T.tolist()
    ]
    near.sort(key=lambda pair: (-pair.similarity, pair.first, pair.second))
    return Found(exact + near, least, similar.shape[1])


def least_similarity(wide: Sequence[float], counts: Sequence[int], num_images: int) -> float:
    """Return the least correlation from which pairs of images are likely copies; 2 if there is none.

    The number of pairs of distinct images within a distance falls as a power of the distance, whose exponent
    is the intrinsic dimension of the images (Levina and Bickel 2004, eq. 4), and faster close to 0. The
    distance is 1 - correlation, so a dimension of 4 is a factor of 4 when it halves. Pairs beyond the number
    that the wider distances predict are copies. The factor is measured where images have a similar one on
    average; of fewer pairs, most may be copies.

    Args:
        wide: expected number of pairs of random images at least as similar as each of `WIDE_SIMILARITIES`.
        counts: number of pairs at least as similar as each of `SIMILARITIES`.
        num_images: number of images.
    """
    ratio = wide[0] / wide[1] if wide[1] > num_images else MIN_RATIO
    distinct = min(wide[1], wide[0] / ratio)
    for least, count in zip(SIMILARITIES, counts, strict=True):
        expected = distinct / ratio
        if count < expected:
            # `wide` counts pairs with any hashes, so the first ratio is too large
            if least > SIMILARITIES[0]:
                ratio = distinct / max(count, 1)
            expected = float(count)
        distinct = expected
        if distinct <= MAX_FALSE_FRACTION * count:
            return least
    return 2.0


def _count_random(thumbnails: NDArray[np.uint8]) -> list[float]:
    """Estimate the number of pairs at least as similar as each of `WIDE_SIMILARITIES` from random images."""
    chosen = np.random.default_rng(0).permutation(len(thumbnails))[:NUM_RANDOM]
    values = _standardized(thumbnails[chosen])
    similarities = (values @ values.T)[np.triu_indices(len(chosen), 1)]
    scale = math.comb(len(thumbnails), 2) / max(len(similarities), 1)
    return [scale * float((similarities >= least).sum()) for least in WIDE_SIMILARITIES]


def similar_hashes(
    hashes: NDArray[np.uint64],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Yield all pairs of hashes (N,) that differ in at most `MAX_DISTANCE` bits, in blocks.

    Yields:
        Smaller indices, larger indices and distances of the pairs; each pair once.
    """
    for band in range(NUM_BANDS):
        keys = _part(hashes, band)
        order = np.argsort(keys, kind="stable")
        ends = np.searchsorted(keys[order], keys[order], side="right")  # of the run of equal parts
        starts = np.arange(len(order))
        offset = 1
        while len(starts := starts[starts + offset < ends[starts]]):
            first, second = order[starts], order[starts + offset]
            distances = count_bits(hashes[first] ^ hashes[second])
            is_near = distances <= MAX_DISTANCE
            for earlier in range(band):  # pairs that an earlier part has found
                is_near[is_near] &= _part(hashes[first[is_near]] ^ hashes[second[is_near]], earlier) != 0
            if is_near.any():
                yield first[is_near], second[is_near], distances[is_near]
            offset += 1


def _part(hashes: NDArray[np.uint64], band: int) -> NDArray[np.uint64]:
    return (hashes >> np.uint64(BAND_BITS * band)) & np.uint64(2**BAND_BITS - 1)


def count_bits(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Count the bits of each word of 64 bits that are set."""
    if hasattr(np, "bitwise_count"):  # since NumPy 2
        return np.bitwise_count(words).astype(np.int64)
    return np.unpackbits(words.view(np.uint8).reshape(-1, 8), axis=1).sum(1, dtype=np.int64)


def _correlations(
    thumbnails: NDArray[np.uint8], firsts: NDArray[np.int64], seconds: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the correlation of the thumbnails of each pair; 0 for thumbnails of one gray."""
    found = [np.zeros(0)]
    for start in range(0, len(firsts), BLOCK):
        one, other = (_standardized(thumbnails[part[start : start + BLOCK]]) for part in (firsts, seconds))
        found.append((one * other).sum(1))
    return np.concatenate(found)


def _standardized(thumbnails: NDArray[np.uint8]) -> NDArray[np.float64]:
    values = thumbnails.reshape(len(thumbnails), -1).astype(np.float64)
    values -= values.mean(1, keepdims=True)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)
