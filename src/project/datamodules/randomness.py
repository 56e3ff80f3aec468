"""Random numbers that follow from what they are for, so that a resumed run draws the same ones."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

WORD = 2**32


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` whose stream is a function of `key` alone, e.g. (seed, epoch, batch).

    Keys are mixed by NumPy's SeedSequence: neighbouring ones give unrelated streams.
    """
    return torch.Generator(device=device).manual_seed(_seed(key))


def batch_generators(
    seed: int, epoch: int, first: int, rank: int, device: torch.device | str = "cpu"
) -> Iterator[torch.Generator]:
    """Yield `generator(seed, epoch, number, rank)` for the batches `first`, `first` + 1, … without end.

    It is one object, seeded anew each time: a batch must have drawn before the next one is asked for.
    """
    draws = torch.Generator(device=device)
    block = 256
    while True:
        numbers = range(first, first + block)
        if max(seed, epoch, first + block, rank) < WORD:
            seeds = batch_seeds(seed, epoch, np.arange(first, first + block, dtype=np.uint32), rank)
        else:
            seeds = [_seed((seed, epoch, number, rank)) for number in numbers]
        for batch_seed in seeds:
            yield draws.manual_seed(batch_seed)
        first += block


def batch_seeds(seed: int, epoch: int, numbers: NDArray[np.uint32], rank: int) -> list[int]:
    """Seeds of `generator(seed, epoch, number, rank)` for many batches at once; all below 2^32.

    SeedSequence takes 20 to 50 µs for one key. This is its algorithm (O'Neill 2015, "Developing a seed_seq
    alternative"; `numpy/random/bit_generator.pyx`, whose results NumPy promises to keep) on arrays.
    """
    shape = numbers.shape
    words = [np.full(shape, word, np.uint32) for word in (seed, epoch)] + [numbers]
    pool = [*words, np.full(shape, rank, np.uint32)]
    scramble = _Scramble(0x43B0D7E5, 0x931E8875)
    pool = [scramble(word) for word in pool]
    for source in range(4):
        for target in range(4):
            if source != target:
                mixed = pool[target] * np.uint32(0xCA01F9DD) - scramble(pool[source]) * np.uint32(0x4973F715)
                pool[target] = mixed ^ (mixed >> np.uint32(16))
    scramble = _Scramble(0x8B51F9DD, 0x58F38DED)
    low, high = scramble(pool[0]).astype(np.uint64), scramble(pool[1]).astype(np.uint64)
    seeds: list[int] = ((low | high << np.uint64(32)) & np.uint64(2**63 - 1)).tolist()
    return seeds


class _Scramble:
    """SeedSequence's hash of 32-bit words, whose constant changes from call to call."""

    def __init__(self, constant: int, factor: int) -> None:
        self.constant = constant
        self.factor = factor

    def __call__(self, words: NDArray[np.uint32]) -> NDArray[np.uint32]:
        words = words ^ np.uint32(self.constant)
        self.constant = self.constant * self.factor % WORD
        words = words * np.uint32(self.constant)
        return words ^ (words >> np.uint32(16))


def _seed(key: tuple[int, ...]) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) & (2**63 - 1)
