"""Classes for the configurations of test sweeps: injected faults, and a loss with a known minimum."""

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
"""Classes that configurations may name, see `project.config.allowed_targets`."""


class Fault(Callback):
    """Makes a run fail at the start of its second epoch, but not again when it is repeated.

    Args:
        kind: `raise`, `kill`, `stop` (until SIGCONT), `memory` or `none`.
        folder: run folder; a file next to it records the failure.
    """

    def __init__(self, kind: str, folder: str) -> None:
        self.kind = kind
        path = Path(folder)
        self.marker = path.with_name(f"{path.name}.failed")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch != 1 or self.kind == "none" or self.marker.exists():
            return
        self.marker.touch()
        if self.kind == "raise":
            raise ArithmeticError("this run was made to fail")
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.kind == "memory":
            torch.empty(2**60, dtype=torch.uint8)  # exceeds the memory of any machine


class QuadraticLoss(nn.Module):
    """Loss (x - 0.3)², independent of the network: a search finds its minimum at x = 0.3.

    Args:
        num_classes: unused.
        x: hyperparameter to search.
    """

    def __init__(self, num_classes: int, x: float) -> None:
        super().__init__()
        self.height = (x - 0.3) ** 2

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.height + 0 * logits.sum()


class Distillation(nn.Module):
    """Loss with a nested `teacher` configuration, whose keys may contradict those of the data.

    Args:
        num_classes: unused.
        teacher: unused.
    """

    def __init__(self, num_classes: int, teacher: dict[str, Any]) -> None:
        super().__init__()

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return 0 * logits.sum()
