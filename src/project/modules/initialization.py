"""Networks that begin with what the training images tell them."""

from typing import Protocol, runtime_checkable

import lightning as L
from torch import Tensor, nn


@runtime_checkable
class FromImages(Protocol):
    """A network with weights that are computed from images before it is trained."""

    def initialize(self, images: Tensor) -> None:
        """Set these weights from normalized training images (N, C, H, W), which no augmentation changed."""
        ...


def initialize_from_images(network: nn.Module, trainer: L.Trainer) -> None:
    """Let a network that asks for it see a sample of the training images, unless it continues from a
    checkpoint.

    Every rank shows it the same images. Call it once the trainer knows its checkpoint, and before anything
    copies the weights.
    """
    if not isinstance(network, FromImages) or trainer.ckpt_path is not None:
        return
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    network.initialize(datamodule.training_sample())
