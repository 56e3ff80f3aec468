"""LightningModule for image classification with any network."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from project.modules.batch_checks import require_logits
from project.modules.optim.parameter_groups import ParameterGroups
from project.modules.optim.schedules import Schedule, constant
from project.modules.optim.training_length import TrainingLength
from project.modules.supervised import SupervisedModule
from project.modules.tta import tta_logits
from project.runtime.lightning_private import trainer_of

MAX_PROBABILITY_COLUMNS = 100
"""Maximum number of classes whose probabilities a table lists."""


class ImageClassifier(SupervisedModule):
    """Image classifier: a network that maps images to the logits of one class per image.

    Batches are normalized images (B, C, H, W) and targets: class indices (B,) or probabilities (B, K).

    Args:
        network: maps images (B, C, H, W) to logits (B, K).
        loss: maps logits (B, K) and targets (B,) or (B, K) to a scalar [cross-entropy].
        optimizer: see `SupervisedModule`.
        scheduler: see `SupervisedModule`.
        tta: test-time augmentation: `none`, `flip`, `flip_translate` or `selective` (see `tta_logits`).
        options: other arguments of `SupervisedModule`. Its `metrics` get probabilities (B, K) and class
            indices (B,).

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
        *,
        tta: Literal["none", "flip", "flip_translate", "selective"] = "none",
        **options: Any,
    ) -> None:
        loss = nn.CrossEntropyLoss() if loss is None else loss
        super().__init__(network, loss, optimizer, scheduler, **options)
        self.tta: str = tta

    def metric_inputs(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """Return probabilities (B, K) and class indices (B,)."""
        # torchmetrics takes logits for probabilities if all of a batch are from 0 to 1.
        labels = targets if targets.ndim == 1 else targets.argmax(dim=1)
        return outputs.float().softmax(dim=1), labels

    def require_outputs(self, outputs: Any, targets: Any) -> None:
        datamodule = getattr(trainer_of(self), "datamodule", None)
        require_logits(outputs, targets, getattr(datamodule, "num_classes", None))

    def prediction_columns(self, outputs: Tensor, names: Sequence[str]) -> dict[str, list[Any]]:
        """Return the most probable class, its probability, and the probability of each class."""
        probabilities = outputs.float().softmax(dim=1)
        best = probabilities.max(dim=1)
        classes = [names[label] for label in best.indices.tolist()]
        columns = {"prediction": classes, "probability": best.values.tolist()}
        return columns | probability_columns(probabilities, names)

    def target_columns(self, targets: Tensor, names: Sequence[str]) -> dict[str, list[Any]]:
        labels = targets if targets.ndim == 1 else targets.argmax(dim=1)
        return {"label": [names[label] for label in labels.tolist()]}

    def test_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Update the metrics with one batch, and return its logits (B, K) for callbacks."""
        images, targets = self.unpack(batch)
        logits = tta_logits(self, images, self.tta)
        self._evaluate("test", self.loss(logits, targets), logits, targets)
        return logits


def probability_columns(probabilities: Tensor, names: Sequence[str]) -> dict[str, list[Any]]:
    """Return columns `p(NAME)` of probabilities (B, K), for up to `MAX_PROBABILITY_COLUMNS` classes."""
    if len(names) > MAX_PROBABILITY_COLUMNS:
        return {}
    columns = probabilities.T.tolist()
    return {f"p({name})": column for name, column in zip(names, columns, strict=True)}
