"""Random streams computed from a key, so that a resumed run draws the numbers of an uninterrupted one."""

from collections.abc import Iterator
from functools import lru_cache
from itertools import count

import numpy as np
import torch

GOLDEN = 0x9E3779B97F4A7C15
MASK = 2**64 - 1
AUGMENTATION_STREAM, NETWORK_STREAM, EPOCH_STREAM = 0, 1, 2
"""Streams of a batch: image augmentation, dropout. Stream of an epoch: batch order."""


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator whose stream depends only on a key, such as (seed, epoch).

    NumPy's SeedSequence mixes the key, so that neighboring keys give independent streams.
    """
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator(device=device).manual_seed(int(state[0]) & (2**63 - 1))


def batch_seed(seed: int, epoch: int, batch: int, rank: int, stream: int = AUGMENTATION_STREAM) -> int:
    """Return the seed of one batch's stream, below 2^63, by SplitMix64.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014. SplitMix64 takes
    1 µs, SeedSequence 20 to 50 µs.
    """
    return _mix(_stream_state(seed, epoch, rank, stream) + batch * GOLDEN) >> 1


def batch_generators(
    seed: int, epoch: int, first: int, rank: int, device: torch.device | str = "cpu"
) -> Iterator[torch.Generator]:
    """Yield the augmentation generators of the batches `first`, `first` + 1, … without end.

    One generator object is seeded again per batch: draw for a batch before taking the next generator.
    """
    draws = torch.Generator(device=device)
    for batch in count(first):
        yield draws.manual_seed(batch_seed(seed, epoch, batch, rank))


@lru_cache(maxsize=16)
def _stream_state(*key: int) -> int:
    state = 0
    for word in key:
        state = _mix(state + word + GOLDEN)
    return state


def _mix(state: int) -> int:
    """Return the image of a 64-bit number under SplitMix64's finalizer, a permutation."""
    state &= MASK
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)
