"""Images of a run's data for the check, the calibration and the benchmark of exported files."""

from collections.abc import Iterator

import torch
from torch import Tensor

from project.datamodules.base import ImageDataModule
from project.datamodules.loading.batch_order import EvaluationOrder
from project.datamodules.loading.loader import ImageLoader


class CalibrationData:
    """Evenly spaced images of a split, as stored and as the network receives them."""

    def __init__(self, loader: ImageLoader, datamodule: ImageDataModule, limit: int | None = None) -> None:
        count = len(loader.rows)
        size = count if limit is None else min(limit, count)
        self.rows = loader.rows[torch.linspace(0, count - 1, size).round().long()]
        self.images = loader.images
        self.labels = loader.images.labels[self.rows]  # n
        self.batch_size = datamodule.eval_batch_size
        assert datamodule.mean is not None
        assert datamodule.std is not None
        self._loader = ImageLoader(
            loader.images,
            self.rows,
            EvaluationOrder(size, self.batch_size),
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
        """Yield the same batches normalized, float32."""
        for images, _ in self._loader:
            yield images


def read_test_images(datamodule: ImageDataModule, limit: int | None = None) -> CalibrationData:
    """Read images of the test split."""
    datamodule.prepare_data()
    datamodule.setup("test")
    return CalibrationData(datamodule.test_dataloader(), datamodule, limit)


def read_training_images(datamodule: ImageDataModule, limit: int) -> CalibrationData:
    """Read images of the training split, not augmented."""
    datamodule.prepare_data()
    datamodule.setup("validate")
    return CalibrationData(datamodule.train_dataloader(), datamodule, limit)
