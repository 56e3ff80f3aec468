"""What tests of sweeps put into a run by its configuration: faults, and a loss of known optimum."""

import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

CONFIG_TARGETS = (
    "Fault",
    "QuadraticLoss",
    "Distillation",
)
"""What configurations may name (see project.config.allowed_targets)."""


class Fault(Callback):
    """Has a run fail in the middle of its second epoch, the first time that it gets there.

    Args:
        kind: `raise`, `kill`, `memory` or `none`.
        folder: of the run; a file beside it remembers that it failed.
    """

    def __init__(self, kind: str, folder: str) -> None:
        self.kind = kind
        path = Path(folder)
        self.memory = path.with_name(f"{path.name}.failed")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch != 1 or self.kind == "none" or self.memory.exists():
            return
        self.memory.touch()
        if self.kind == "raise":
            raise ArithmeticError("this run was made to fail")
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        torch.empty(2**60, dtype=torch.uint8)  # more than any machine has


class QuadraticLoss(nn.Module):
    """A loss that no training changes: (x - 0.3)².

    Args:
        num_classes: not used.
        x: where to be.
    """

    def __init__(self, num_classes: int, x: float) -> None:
        super().__init__()
        self.height = (x - 0.3) ** 2

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.height + 0 * logits.sum()


class Distillation(nn.Module):
    """A loss with a teacher, whose options may repeat a fact of the data with another value.

    Args:
        num_classes: not used.
        teacher: not used.
    """

    def __init__(self, num_classes: int, teacher: dict[str, Any]) -> None:
        super().__init__()

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return 0 * logits.sum()
