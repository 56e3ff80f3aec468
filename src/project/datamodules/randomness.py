"""Random numbers that follow from what they are for, so that a resumed run draws the same ones."""

import numpy as np
import torch


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` whose stream is a function of `key` alone, e.g. (seed, epoch, batch).

    Keys are mixed by NumPy's SeedSequence: neighbouring ones give unrelated streams.
    """
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return torch.Generator(device=device).manual_seed(seed & (2**63 - 1))
