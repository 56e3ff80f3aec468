"""What all ranks of a training must know alike before they go on."""

import lightning as L
import torch


def largest(trainer: L.Trainer, *numbers: int) -> list[int]:
    """Return the largest of each number over all ranks. All of them must call this at the same place."""
    if trainer.world_size == 1:
        return list(numbers)
    words = torch.tensor(numbers, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(words, op=torch.distributed.ReduceOp.MAX)
    return [int(word) for word in words.tolist()]
