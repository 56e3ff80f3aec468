"""Parameters that have come to rest cost nothing more."""

from collections.abc import Mapping

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from project.modules.optim.schedules import Length


class Rest(Callback):
    """Stop computing the gradients of parameters whose learning rate has come to 0 for good.

    Looked at once an epoch. Results are the same; what a first layer saves is the whole way back through what
    follows it. A compiled network is compiled once more for that. Under DDP nothing is left out, for every
    rank waits for all gradients there.

    Args:
        role_ends: fraction of the training after which a role's parameters (see `parameter_groups`) rest,
            as the schedule `linear` takes it.
    """

    def __init__(self, role_ends: Mapping[str, float]) -> None:
        self.role_ends = dict(role_ends)
        self._resting: list[Tensor] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let those rest that did when a checkpoint was written."""
        self._rest(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let those rest whose time has come."""
        self._rest(trainer)

    def _rest(self, trainer: L.Trainer) -> None:
        if trainer.world_size > 1:
            return
        length = Length.of(trainer)
        done = (length.done - length.into_epoch) / length.steps  # a resumed run may be within an epoch
        groups = trainer.optimizers[0].param_groups
        ended = [group for group in groups if done >= self.role_ends.get(group.get("role", ""), float("inf"))]
        if len(ended) == len(groups):  # a loss must have something to be derived by
            return
        for group in ended:
            for parameter in group["params"]:
                if parameter.requires_grad:
                    parameter.requires_grad = False
                    parameter.grad = None
                    self._resting.append(parameter)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the parameters as they were."""
        for parameter in self._resting:
            parameter.requires_grad = True
        self._resting = []

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Leave the parameters as they were."""
        self.on_train_end(trainer, pl_module)
