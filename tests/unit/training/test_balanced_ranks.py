"""Test of balanced sampling in a training on two ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import make_module, make_trainer
from torch import Tensor

from project.datamodules.base import Split
from project.datamodules.image_base import ImageDataModule
from project.training.ddp.launch import run_ranks

NUM_TRAIN, NUM_RARE, BATCH_SIZE, EPOCHS = 200, 12, 20, 2


class Numbered(ImageDataModule):
    """Images whose pixels are their numbers; those below 12 are of a rare class."""

    def __init__(self) -> None:
        super().__init__(
            name="numbered",
            input_shape=(1, 8, 8),
            num_classes=3,
            val_size=0,
            batch_size=BATCH_SIZE,
            sampler="balanced",
            mean=[0.0],
            std=[1.0],
        )

    def load_split(self, split: Split) -> tuple[Tensor, Tensor] | None:
        if split == "val":
            return None
        numbers = torch.arange(NUM_TRAIN)
        images = numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
        return images, torch.where(numbers < NUM_RARE, 0, 1 + numbers % 2)


def train(folder: Path, num_ranks: int) -> None:
    """Train; each rank writes the numbers (B,) of the images in each of its batches, by epoch."""

    def work() -> None:
        module: Any = make_module()
        options = {"devices": num_ranks, "strategy": "ddp"} if num_ranks > 1 else {}
        trainer = make_trainer(folder, max_epochs=EPOCHS, enable_checkpointing=False, **options)
        seen: list[list[Tensor]] = [[] for _ in range(EPOCHS)]
        step = module.training_step

        def record(batch: Any, batch_idx: int) -> Any:
            seen[trainer.current_epoch].append((batch[0][:, 0, 0, 0] * 255).round().long())
            return step(batch, batch_idx)

        module.training_step = record
        trainer.fit(module, Numbered())
        torch.save(seen, folder / f"{num_ranks}_{trainer.global_rank}.pt")

    run_ranks(work, num_ranks) if num_ranks > 1 else work()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:It is recommended")
def test_each_rank_draws_another_part_of_the_balanced_batches(tmp_path: Path) -> None:
    train(tmp_path, 1)
    train(tmp_path, 2)
    alone, *ranks = (torch.load(tmp_path / f"{name}.pt") for name in ("1_0", "2_0", "2_1"))
    for epoch in range(EPOCHS):
        for batch, *parts in zip(alone[epoch], *(rank[epoch] for rank in ranks), strict=True):
            assert [len(part) for part in parts] == [BATCH_SIZE // 2] * 2
            torch.testing.assert_close(torch.cat(parts).sort()[0], batch.sort()[0])
        drawn = [torch.cat(rank[epoch]) for rank in ranks]
        assert not torch.equal(*drawn)
        for numbers in drawn:  # a third, within four standard deviations of 100 draws
            assert float((numbers < NUM_RARE).float().mean()) == pytest.approx(1 / 3, abs=0.19)
    first, second = (torch.cat([torch.cat(rank[epoch]) for rank in ranks]) for epoch in range(EPOCHS))
    assert not torch.equal(first, second)
