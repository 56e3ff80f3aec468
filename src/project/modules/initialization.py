"""Networks that begin with what the training images tell them."""

from typing import Protocol, runtime_checkable

import lightning as L
from torch import Tensor, nn

from project.errors import InputError


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

    Raises:
        InputError: the trainer's data module offers no sample.
    """
    if not isinstance(network, FromImages) or trainer.ckpt_path is not None:
        return
    sample = getattr(trainer.datamodule, "training_sample", None)  # type: ignore[attr-defined]
    if sample is None:
        raise InputError(
            f"model: {type(network).__name__} computes weights from training images; train it on an "
            "ImageDataModule, or a data module with a method training_sample()"
        )
    network.initialize(sample())
