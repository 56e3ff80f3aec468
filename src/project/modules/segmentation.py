"""LightningModule for semantic segmentation: one class per pixel."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torchmetrics import Metric
from torchmetrics.classification import MulticlassJaccardIndex

from project.datamodules.targets import describe
from project.errors import InputError
from project.modules.optim.parameter_groups import ParameterGroups
from project.modules.optim.schedules import Schedule, constant
from project.modules.optim.training_length import TrainingLength
from project.modules.supervised import SupervisedModule
from project.runtime.bounds import Range


class PixelCrossEntropy(nn.Module):
    """Cross-entropy over labeled pixels: its mean over the pixels of each image, then over images.

    Args:
        ignore_index: class of pixels without a label. An image without labeled pixels has loss 0.
    """

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the scalar loss of logits (B, K, H, W) for class indices (B, H, W)."""
        losses = F.cross_entropy(logits, targets, ignore_index=self.ignore_index, reduction="none")
        labeled = (targets != self.ignore_index).sum(dim=(1, 2))
        return (losses.sum(dim=(1, 2)) / labeled.clamp(min=1)).mean()


class Segmenter(SupervisedModule):
    """Network that classifies each pixel of an image.

    Batches are normalized images (B, C, H, W) and class indices (B, H, W). `val/miou` and `test/miou` are the
    mean over classes of the intersection over union, counted over all pixels of the split. Classes with
    neither labels nor predictions are left out.

    Args:
        network: maps images (B, C, H, W) to logits (B, K, H, W).
        optimizer: see `SupervisedModule`.
        scheduler: see `SupervisedModule`.
        num_classes: number of classes, K.
        ignore_index: class index of pixels without a label [255].
        loss: maps logits and class indices to a scalar [`PixelCrossEntropy`].
        options: arguments of `SupervisedModule` for weight decay, compilation and memory format.

    Raises:
        InputError: in the first training step, the outputs are not logits of the shape of the masks, or the
            masks have class indices of `num_classes` or more.
    """

    METRICS: ClassVar[dict[str, str]] = {"miou": "max", "loss": "min"}

    supports_batched_hooks = True

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[[ParameterGroups], Optimizer] = torch.optim.Adam,
        scheduler: Callable[[Optimizer, TrainingLength], Schedule] = constant,
        *,
        num_classes: Annotated[int, Range(2)],
        ignore_index: Annotated[int, Range(0, 255)] = 255,
        loss: nn.Module | None = None,
        **options: Any,
    ) -> None:
        loss = PixelCrossEntropy(ignore_index) if loss is None else loss
        super().__init__(network, loss, optimizer, scheduler, **options)
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def build_metrics(self) -> dict[str, Metric]:
        return {"miou": MulticlassJaccardIndex(self.num_classes, ignore_index=self.ignore_index)}

    def require_outputs(self, outputs: Any, targets: Any) -> None:
        if not isinstance(targets, Tensor) or targets.ndim != 3 or targets.is_floating_point():
            raise InputError(
                "data: targets are not masks (expected class indices of shape [batch, height, width], got "
                f"{describe(targets)}); set data=image_masks, or another task"
            )
        labels = targets[targets != self.ignore_index]
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise InputError(
                f"data.num_classes={self.num_classes}: masks have class indices from {int(labels.min())} to "
                f"{int(labels.max())} (expected 0 to {self.num_classes - 1}, or {self.ignore_index} for "
                "pixels without a label); raise data.num_classes, or correct the masks"
            )
        shape = [len(targets), self.num_classes, *targets.shape[1:]]
        if not isinstance(outputs, Tensor) or list(outputs.shape) != shape:
            raise InputError(
                f"model: outputs are not logits of pixels (expected floats of shape {shape}, got "
                f"{describe(outputs)}); set model=unet, or a network with one output per class and pixel"
            )
