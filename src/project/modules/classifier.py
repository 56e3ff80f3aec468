"""LightningModule for image classification with any network."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from project.modules.batch_checks import require_logits
from project.modules.optim.parameter_groups import ParameterGroups
from project.modules.optim.schedules import Schedule, constant
from project.modules.optim.training_length import TrainingLength
from project.modules.supervised import SupervisedModule
from project.modules.tta import tta_logits
from project.runtime.bounds import Range
from project.runtime.lightning_private import trainer_of


class ImageClassifier(SupervisedModule):
    """Image classifier: a network that maps images to the logits of one class per image.

    Batches are normalized images (B, C, H, W) and targets: class indices (B,) or probabilities (B, K).

    Args:
        network: maps images (B, C, H, W) to logits (B, K).
        loss: maps logits (B, K) and targets (B,) or (B, K) to a scalar [cross-entropy].
        optimizer: see `SupervisedModule`.
        scheduler: see `SupervisedModule`.
        metrics: see `SupervisedModule`; they get probabilities (B, K) and class indices (B,).
        train_metrics: see `SupervisedModule`.
        weight_decay_norm_bias: see `SupervisedModule`.
        layerwise_lr_decay: see `SupervisedModule`.
        compile: see `SupervisedModule`.
        channels_last: see `SupervisedModule`.
        tta: test-time augmentation: `none`, `flip` or `flip_translate` (see `tta_logits`).

    Raises:
        InputError: the loss does not average over images; in the first training step, the network's outputs
            are not logits, or the targets are not classes.
    """

    METRICS: ClassVar[dict[str, str]] = {"acc": "max", "loss": "min"}
    TARGET_TYPE: ClassVar[str] = "class"

    supports_batched_hooks = True

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module | None = None,
        optimizer: Callable[[ParameterGroups], Optimizer] = torch.optim.Adam,
        scheduler: Callable[[Optimizer, TrainingLength], Schedule] = constant,
        metrics: Mapping[str, Metric] | None = None,
        *,
        train_metrics: bool = False,
        weight_decay_norm_bias: bool = True,
        layerwise_lr_decay: Annotated[float, Range(above=0, high=1)] = 1.0,
        compile: bool = False,
        channels_last: bool = False,
        tta: Literal["none", "flip", "flip_translate"] = "none",
    ) -> None:
        super().__init__(
            network,
            nn.CrossEntropyLoss() if loss is None else loss,
            optimizer,
            scheduler,
            metrics,
            train_metrics=train_metrics,
            weight_decay_norm_bias=weight_decay_norm_bias,
            layerwise_lr_decay=layerwise_lr_decay,
            compile=compile,
            channels_last=channels_last,
        )
        self.tta: str = tta

    def metric_inputs(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """Return probabilities (B, K) and class indices (B,)."""
        # torchmetrics takes logits for probabilities if all of a batch are from 0 to 1.
        labels = targets if targets.ndim == 1 else targets.argmax(dim=1)
        return outputs.float().softmax(dim=1), labels

    def require_outputs(self, outputs: Any, targets: Any) -> None:
        datamodule = getattr(trainer_of(self), "datamodule", None)
        require_logits(outputs, targets, getattr(datamodule, "num_classes", None))

    def test_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Update the metrics with one batch, and return its logits (B, K) for callbacks."""
        images, targets = self.unpack(batch)
        logits = tta_logits(self, images, self.tta)
        self.eval_metrics.append(self.loss(logits, targets), logits, targets)
        self._update_metrics("test", logits, targets)
        return logits
