"""Random numbers that follow from what they are for, so that a resumed run draws the same ones."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

WORD = 2**32
BLOCK = 256
"""Batches whose seeds are computed together: 20 to 50 µs each by themselves, 0.5 µs so."""


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
    while True:
        for batch_seed in _block_of_seeds(seed, epoch, first, rank):
            yield draws.manual_seed(batch_seed)
        first += BLOCK


class StepSeeds:
    """Seeds for what a network draws in a training step, dropout above all: functions of the run's seed, the
    epoch, the batch and the rank. Not those by which `batch_generators` change the batch's images.

    Args:
        seed: of the run.
        rank: of this process.
    """

    def __init__(self, seed: int, rank: int) -> None:
        self.seed = seed
        self.rank = rank
        self.forget()

    def forget(self) -> None:
        """Let the next batch be of another epoch."""
        self._first = 0
        self._seeds: list[int] = []

    def of(self, number: int, epoch: Callable[[], int]) -> int:
        """The seed of a batch; the epoch is asked for when it is needed."""
        place = number - self._first
        if not 0 <= place < len(self._seeds):
            self._first, place = number, 0
            self._seeds = _block_of_seeds(self.seed, epoch(), number, self.rank, stream=1)
        return self._seeds[place]


def _block_of_seeds(seed: int, epoch: int, first: int, rank: int, stream: int = 0) -> list[int]:
    numbers = range(first, first + BLOCK)
    if max(seed, epoch, first + BLOCK, rank) < WORD:
        return batch_seeds(seed, epoch, np.array(numbers, dtype=np.uint32), rank, stream)
    return [_seed((seed, epoch, number, rank), stream) for number in numbers]


def batch_seeds(seed: int, epoch: int, numbers: NDArray[np.uint32], rank: int, stream: int = 0) -> list[int]:
    """Seeds of `generator(seed, epoch, number, rank)` for many batches at once; all below 2^32. Stream 1 is
    what SeedSequence gives next for the same keys.

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
    state = [scramble(word).astype(np.uint64) for word in pool]
    low, high = state[2 * stream : 2 * stream + 2]
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


def _seed(key: tuple[int, ...], stream: int = 0) -> int:
    return int(np.random.SeedSequence(key).generate_state(stream + 1, np.uint64)[stream]) & (2**63 - 1)
