"""Random numbers that are functions of seed, epoch, batch and rank: a resumed run draws the same again."""

import os
import random

import lightning as L
import numpy as np
import torch

from project.runtime.seeding import EPOCH_STREAM, NETWORK_STREAM, batch_seed


class RandomStreams:
    """Seeds the generators that a training draws from, before each batch.

    The draws of a batch (dropout, noise, augmentation in this process) depend on no batch before it. The seed
    is that of `lightning.seed_everything`, else 0.

    Args:
        trainer: of the run.
        of_libraries: seed Python's and NumPy's generators too, from which data sets of others may draw.
    """

    def __init__(self, trainer: L.Trainer, *, of_libraries: bool) -> None:
        self.trainer = trainer
        self.of_libraries = of_libraries
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        self._generators = _torch_generators(trainer.strategy.root_device)

    def start_epoch(self) -> None:
        """Seed the draws of data loaders at the start of an epoch: the order, and the seeds of workers."""
        self._seed(batch_seed(self.seed, self.trainer.current_epoch, 0, 0, EPOCH_STREAM))

    def start_batch(self, batch_idx: int) -> None:
        """Seed everything that is drawn for a batch of the present epoch."""
        epoch, rank = self.trainer.current_epoch, self.trainer.global_rank
        self._seed(batch_seed(self.seed, epoch, batch_idx, rank, NETWORK_STREAM))

    def _seed(self, seed: int) -> None:
        for generator in self._generators:
            generator.manual_seed(seed)
        if self.of_libraries:
            random.seed(seed)
            np.random.seed(seed % 2**32)


def _torch_generators(device: torch.device) -> list[torch.Generator]:
    """Return the generators that networks draw from on a device: its own, and the CPU's."""
    found = [torch.default_generator]
    if device.type in ("cuda", "xpu"):
        generators = torch.get_device_module(device).default_generators
        found.append(generators[device.index or 0])
    elif device.type == "mps":
        found.append(torch.mps._get_default_mps_generator())
    return found
