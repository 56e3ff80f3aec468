"""Real images: what files are checked, calibrated and timed with."""

from collections.abc import Iterator

import torch
from torch import Tensor

from project.datamodules.base import ImageDataModule
from project.datamodules.loading.batch_order import EvaluationOrder
from project.datamodules.loading.loader import ImageLoader


class Samples:
    """Images of a split, spaced evenly, each as it is in a file and as the loader gives it to the network.

    Args:
        loader: of the split.
        datamodule: that the loader is from.
        most: images; None takes all.
    """

    def __init__(self, loader: ImageLoader, datamodule: ImageDataModule, most: int | None = None) -> None:
        count = len(loader.rows)
        size = count if most is None else min(most, count)
        self.rows = loader.rows[torch.linspace(0, count - 1, size).round().long()]
        self.images = loader.images
        self.labels = loader.images.labels[self.rows]  # n
        self.batch_size = datamodule.eval_batch_size
        assert datamodule.mean is not None
        assert datamodule.std is not None
        order = EvaluationOrder(size, self.batch_size)
        self._loader = ImageLoader(
            loader.images,
            self.rows,
            order,
            mean=datamodule.mean,
            std=datamodule.std,
            device=torch.device("cpu"),
        )

    def __len__(self) -> int:
        return len(self.rows)

    def pixels(self) -> Iterator[Tensor]:
        """Yield batches (B, C, H, W) uint8."""
        for rows in self.rows.split(self.batch_size):
            yield self.images.sample(rows)

    def normalized(self) -> Iterator[Tensor]:
        """Yield the same batches as an evaluation of the run gets them, float32."""
        for images, _ in self._loader:
            yield images


def of_test(datamodule: ImageDataModule, most: int | None = None) -> Samples:
    """Images of the test split."""
    datamodule.prepare_data()
    datamodule.setup("test")
    return Samples(datamodule.test_dataloader(), datamodule, most)


def of_training(datamodule: ImageDataModule, most: int) -> Samples:
    """Images that the network was trained on, not augmented."""
    datamodule.prepare_data()
    datamodule.setup("validate")
    return Samples(datamodule.train_dataloader(), datamodule, most)
