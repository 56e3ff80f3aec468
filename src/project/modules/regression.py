"""LightningModule for regression: one or several real values per input."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanAbsoluteError, Metric, R2Score

from project.modules.batch_checks import require_values
from project.modules.optim.parameter_groups import ParameterGroups
from project.modules.optim.schedules import Schedule, constant
from project.modules.optim.training_length import TrainingLength
from project.modules.supervised import SupervisedModule
from project.runtime.bounds import Range


class Regressor(SupervisedModule):
    """Network that predicts D real values per input.

    Batches are inputs (B, …) and targets (B,) or (B, D). With `standardize`, the network predicts targets of
    mean 0 and standard deviation 1, and the loss is that of standardized targets; `forward` and the metrics
    have the units of the targets. Metrics: `mae`, the mean absolute error over inputs and values; `r2`, the
    mean over the values of the coefficient of determination.

    Args:
        network: maps inputs (B, …) to values (B, D).
        loss: maps values and targets, both (B, D), to a scalar [mean squared error].
        optimizer: see `SupervisedModule`.
        scheduler: see `SupervisedModule`.
        num_targets: number of values per input, D [1].
        standardize: standardize the targets by mean and standard deviation of the training split [True].
        options: other arguments of `SupervisedModule`.

    Raises:
        InputError: the loss does not average over the batch; in the first training step, the outputs or
            the targets are not real values (B, D).
    """

    METRICS: ClassVar[dict[str, str]] = {"mae": "min", "r2": "max", "loss": "min"}
    TARGET_TYPE: ClassVar[str] = "real"
    target_mean: Tensor  # D
    target_std: Tensor  # D

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module | None = None,
        optimizer: Callable[[ParameterGroups], Optimizer] = torch.optim.Adam,
        scheduler: Callable[[Optimizer, TrainingLength], Schedule] = constant,
        *,
        num_targets: Annotated[int, Range(1)] = 1,
        standardize: bool = True,
        **options: Any,
    ) -> None:
        loss = nn.MSELoss() if loss is None else loss
        super().__init__(network, loss, optimizer, scheduler, **options)
        self.num_targets = num_targets
        self.needs_targets = standardize
        self.register_buffer("target_mean", torch.zeros(num_targets))
        self.register_buffer("target_std", torch.ones(num_targets))

    def build_metrics(self) -> dict[str, Metric]:
        return {"mae": MeanAbsoluteError(), "r2": R2Score()}

    def fit_targets(self, targets: Tensor) -> None:
        """Set mean and standard deviation from the targets of the training split, (N,) or (N, D)."""
        values = targets.double().view(len(targets), -1)
        std = values.std(0, correction=0)
        self.target_mean.copy_(values.mean(0))
        self.target_std.copy_(torch.where(std > 0, std, 1.0))  # constant targets stay as they are

    def forward(self, inputs: Tensor) -> Any:
        """Map inputs (B, …) to values (B, D) in the units of the targets."""
        outputs = super().forward(inputs)
        return outputs * self.target_std + self.target_mean if isinstance(outputs, Tensor) else outputs

    def exported_network(self) -> nn.Module:
        """Return a module that maps inputs (B, …) to values (B, D) in the units of the targets."""
        return nn.Sequential(self.network, InTargetUnits(self.target_mean, self.target_std))

    def unpack(self, batch: Any) -> tuple[Tensor, Tensor]:
        inputs, targets = batch
        return inputs, targets[:, None] if targets.ndim == 1 else targets

    def compute_loss(self, inputs: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = self.loss(self._standardized(outputs), self._standardized(targets))
        return loss

    def _standardized(self, values: Tensor) -> Tensor:
        return (values - self.target_mean) / self.target_std

    def metric_inputs(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        pair = outputs.float(), targets.float()
        return (pair[0][:, 0], pair[1][:, 0]) if self.num_targets == 1 else pair

    def prediction_columns(self, outputs: Tensor, names: Sequence[str]) -> dict[str, list[Any]]:
        return _columns("prediction", outputs, names)

    def target_columns(self, targets: Tensor, names: Sequence[str]) -> dict[str, list[Any]]:
        return _columns("target", targets, names)

    def require_outputs(self, outputs: Any, targets: Any) -> None:
        require_values(outputs, targets, self.num_targets)


def _columns(kind: str, values: Tensor, names: Sequence[str]) -> dict[str, list[Any]]:
    """Return the columns of values (B, D): `prediction(NAME)` for each."""
    columns = values.float().T.tolist()
    return {f"{kind}({name})": column for name, column in zip(names, columns, strict=True)}


class InTargetUnits(nn.Module):
    """Maps standardized values (B, D) to the units of the targets.

    Args:
        mean: mean of each value, (D,).
        std: standard deviation of each value, (D,).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())

    def forward(self, values: Tensor) -> Tensor:
        """Return values (B, D) times the standard deviation, plus the mean."""
        return values * self.std + self.mean
