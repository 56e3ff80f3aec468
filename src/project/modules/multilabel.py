"""LightningModule for multi-label classification: several labels per input, each present or absent."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score

from project.modules.batch_checks import require_label_logits
from project.modules.classifier import probability_columns
from project.modules.optim.parameter_groups import ParameterGroups
from project.modules.optim.schedules import Schedule, constant
from project.modules.optim.training_length import TrainingLength
from project.modules.supervised import SupervisedModule
from project.runtime.bounds import Range


class MultilabelClassifier(SupervisedModule):
    """Classifier that predicts the probability of each of K labels.

    Batches are inputs (B, …) and targets (B, K) from 0 to 1. Metrics: `map`, the mean over the labels of the
    average precision; `f1`, the mean over the labels of F1 at `threshold`. Both take a target above 0.5 as
    present.

    Args:
        network: maps inputs (B, …) to logits (B, K).
        loss: maps logits (B, K) and targets (B, K) to a scalar [binary cross-entropy].
        optimizer: see `SupervisedModule`.
        scheduler: see `SupervisedModule`.
        num_labels: number of labels, K.
        threshold: probability above which a label counts as present [0.5].
        options: other arguments of `SupervisedModule`.

    Raises:
        InputError: the loss does not average over the batch; in the first training step, the outputs are
            not logits (B, K), or the targets are not labels (B, K).
    """

    METRICS: ClassVar[dict[str, str]] = {"map": "max", "f1": "max", "loss": "min"}
    TARGET_TYPE: ClassVar[str] = "multilabel"

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module | None = None,
        optimizer: Callable[[ParameterGroups], Optimizer] = torch.optim.Adam,
        scheduler: Callable[[Optimizer, TrainingLength], Schedule] = constant,
        *,
        num_labels: Annotated[int, Range(2)],
        threshold: Annotated[float, Range(0, 1)] = 0.5,
        **options: Any,
    ) -> None:
        loss = nn.BCEWithLogitsLoss() if loss is None else loss
        super().__init__(network, loss, optimizer, scheduler, **options)
        self.num_labels = num_labels
        self.threshold = threshold

    def build_metrics(self) -> dict[str, Metric]:
        return {
            "map": MultilabelAveragePrecision(num_labels=self.num_labels),
            "f1": MultilabelF1Score(num_labels=self.num_labels, threshold=self.threshold),
        }

    def metric_inputs(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        # torchmetrics takes values from 0 to 1 for probabilities, and so logits of some batches.
        return outputs.float().sigmoid(), (targets > 0.5).long()

    def prediction_columns(self, outputs: Tensor, names: Sequence[str]) -> dict[str, list[Any]]:
        """Return the labels above `threshold`, joined by semicolons, and the probability of each label."""
        probabilities = outputs.float().sigmoid()
        columns: dict[str, list[Any]] = {"prediction": _join_labels(probabilities > self.threshold, names)}
        return columns | probability_columns(probabilities, names)

    def target_columns(self, targets: Tensor, names: Sequence[str]) -> dict[str, list[Any]]:
        return {"labels": _join_labels(targets > 0.5, names)}

    def require_outputs(self, outputs: Any, targets: Any) -> None:
        require_label_logits(outputs, targets, self.num_labels)


def _join_labels(present: Tensor, names: Sequence[str]) -> list[str]:
    """Return the names of the labels that are present in each row (B, K), joined by semicolons."""
    return [
        "; ".join(name for name, is_in in zip(names, row, strict=True) if is_in) for row in present.tolist()
    ]
