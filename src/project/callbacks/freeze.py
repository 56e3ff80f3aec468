"""Callbacks that freeze a pretrained backbone at first, or parameters whose training is finished."""

import logging
from collections.abc import Mapping
from typing import Annotated

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from project.errors import InputError
from project.modules.optim.parameter_groups import parameter_blocks
from project.modules.optim.training_length import TrainingLength
from project.runtime.bounds import Range

log = logging.getLogger(__name__)


class FreezeBackbone(Callback):
    """Freezes the backbone in the first epochs, in which only the head trains.

    Otherwise gradients of the head's random weights would damage the pretrained backbone. The frozen backbone
    computes no gradients, keeps its batch norm statistics and applies no dropout. Dropout after the
    backbone's last layer belongs to the head. The optimizer holds the backbone's parameters from the start
    and skips them while they have no gradients. The schedule therefore covers all epochs, and the parameter
    groups of a resumed run are the same. A compiled network is recompiled after unfreezing. If the network
    has no trainable parameters outside the head, the callback logs this and does nothing.

    Args:
        epochs: number of head-only epochs [0]; 0: all parameters train from the start.

    Raises:
        InputError: `epochs` is above 0 and the strategy is neither `auto` nor `ddp`.
    """

    def __init__(self, epochs: Annotated[int, Range(0)] = 0) -> None:
        self.epochs = epochs
        self._is_frozen = False
        self._frozen: list[nn.Parameter] = []
        self._in_eval_mode: list[nn.Module] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.epochs and type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy):
            raise InputError(
                f"callbacks.freeze_backbone.epochs={self.epochs}: not supported by "
                f"{type(trainer.strategy).__name__}; set trainer.strategy=auto or ddp, or 0 epochs"
            )
        self._update(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._update(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._unfreeze()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._unfreeze()

    def _update(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Freeze or unfreeze the backbone according to the current epoch."""
        should_freeze = trainer.current_epoch < self.epochs
        if should_freeze == self._is_frozen:
            return
        self._is_frozen = should_freeze
        if should_freeze:
            network = pl_module.network
            assert isinstance(network, nn.Module)
            self._freeze(network)
            if not self._frozen:
                key = f"callbacks.freeze_backbone.epochs={self.epochs}"
                _log_once(trainer, f"{key}: no effect, the network has no trainable parameters but the head")
                return
            until = f"the first {self.epochs} epochs" if self.epochs > 1 else "the first epoch"
            _log_once(trainer, f"only the head trains in {until}")
        elif self._frozen:
            self._unfreeze()
            _log_once(trainer, "all parameters train from now on")
        else:
            return
        if isinstance(trainer.strategy, DDPStrategy):
            _rewrap(trainer.strategy)

    def _freeze(self, network: nn.Module) -> None:
        *body, head = parameter_blocks(network)
        self._frozen = [parameter for block in body for parameter in block if parameter.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad = False
            parameter.grad = None
        backbone = _modules_without(network, set(head)) if self._frozen else []
        while backbone and not any(True for _ in backbone[-1].parameters()):
            backbone.pop()  # without parameters, such as dropout: part of the head that follows
        self._in_eval_mode = [part for module in backbone for part in module.modules() if part.training]
        for part in self._in_eval_mode:
            part.training = False

    def _unfreeze(self) -> None:
        for parameter in self._frozen:
            parameter.requires_grad = True
        for part in self._in_eval_mode:
            part.training = True
        self._is_frozen, self._frozen, self._in_eval_mode = False, [], []


class FreezeFinishedParams(Callback):
    """Stops gradient computation for parameters whose learning rate reached zero.

    Results do not change; freezing a finished first layer saves its backward pass. Learning rates are checked
    once per epoch. A compiled network is recompiled. Under DDP nothing is frozen, because ranks wait for all
    gradients.

    Args:
        role_ends: maps a parameter role (see `parameter_groups`) to the fraction of the training after which
            its learning rate is zero, as in the schedule `linear`.
    """

    def __init__(self, role_ends: Mapping[str, float]) -> None:
        self.role_ends = dict(role_ends)
        self._frozen: list[Tensor] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._freeze(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._freeze(trainer)

    def _freeze(self, trainer: L.Trainer) -> None:
        if trainer.world_size > 1:
            return
        length = TrainingLength.of(trainer)
        # At the start of the epoch, also where a run resumes within it.
        done_fraction = (length.done - length.into_epoch) / length.steps
        groups = trainer.optimizers[0].param_groups
        finished = [
            group
            for group in groups
            if done_fraction >= self.role_ends.get(group.get("role", ""), float("inf"))
        ]
        if len(finished) == len(groups):  # the backward pass fails without any gradient
            return
        for group in finished:
            for parameter in group["params"]:
                if parameter.requires_grad:
                    parameter.requires_grad = False
                    parameter.grad = None
                    self._frozen.append(parameter)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for parameter in self._frozen:
            parameter.requires_grad = True
        self._frozen = []

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.on_train_end(trainer, pl_module)


def _modules_without(network: nn.Module, head: set[nn.Parameter]) -> list[nn.Module]:
    """Return the largest modules that hold no parameter of the head, in registration order."""
    found = []
    for child in network.children():
        if head.isdisjoint(child.parameters()):
            found.append(child)
        else:
            found += _modules_without(child, head)
    return found


def _log_once(trainer: L.Trainer, line: str) -> None:
    if trainer.is_global_zero:
        log.info(line)


def _rewrap(strategy: DDPStrategy) -> None:
    """Wrap the model in DDP again, which then waits only for gradients of unfrozen parameters."""
    wrapped = strategy.model
    assert isinstance(wrapped, DistributedDataParallel)
    wrapped._remove_autograd_hooks()
    strategy.model = wrapped.module
    strategy.configure_ddp()
    torch.distributed.barrier()
