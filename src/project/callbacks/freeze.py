"""Freezing of parameters for a part of the training: a pretrained backbone at first, finished ones later."""

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
from project.modules.optim.parameter_groups import blocks
from project.modules.optim.schedules import Length
from project.runtime.bounds import Range

log = logging.getLogger(__name__)


class FreezeBackbone(Callback):
    """Trains the head alone at first, because gradients of its random weights would spoil the backbone.

    In these epochs the backbone computes no gradients, keeps its batch norm statistics and uses no dropout; a
    dropout behind its last layer belongs to the head. The optimizer has the backbone's parameters from the
    start and skips them while they have no gradients: the schedule runs over the whole training, and a
    resumed run finds its groups. A compiled network is compiled once more when the backbone thaws. Where only
    the head trains anyway, a line says so.

    Args:
        epochs: of head-only training [0]; 0: all parameters train from the start.

    Raises:
        InputError: `epochs` is above 0 under a strategy other than auto and ddp.
    """

    def __init__(self, epochs: Annotated[int, Range(0)] = 0) -> None:
        self.epochs = epochs
        self._is_frozen = False
        self._frozen: list[nn.Parameter] = []
        self._in_eval_mode: list[nn.Module] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.epochs and type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy):
            raise InputError(
                f"callbacks.freeze_backbone.epochs={self.epochs}: not with the strategy "
                f"{type(trainer.strategy).__name__}; set trainer.strategy=auto or ddp, or 0 epochs"
            )
        self._update(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._update(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._thaw()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._thaw()

    def _update(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Freeze or thaw, as the epoch asks."""
        freezes = trainer.current_epoch < self.epochs
        if freezes == self._is_frozen:
            return
        self._is_frozen = freezes
        if freezes:
            network = pl_module.network
            assert isinstance(network, nn.Module)
            self._freeze(network)
            if not self._frozen:
                key = f"callbacks.freeze_backbone.epochs={self.epochs}"
                _log_once(trainer, f"{key}: only the head trains anyway")
                return
            until = f"the first {self.epochs} epochs" if self.epochs > 1 else "the first epoch"
            _log_once(trainer, f"only the head trains in {until}")
        elif self._frozen:
            self._thaw()
            _log_once(trainer, "everything trains now")
        else:
            return
        if isinstance(trainer.strategy, DDPStrategy):
            _rewrap(trainer.strategy)

    def _freeze(self, network: nn.Module) -> None:
        *body, head = blocks(network)
        self._frozen = [parameter for block in body for parameter in block if parameter.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad = False
            parameter.grad = None
        backbone = _modules_without(network, set(head)) if self._frozen else []
        while backbone and not any(True for _ in backbone[-1].parameters()):
            backbone.pop()  # without parameters, such as a dropout: it belongs to the layer behind it
        self._in_eval_mode = [part for module in backbone for part in module.modules() if part.training]
        for part in self._in_eval_mode:
            part.training = False

    def _thaw(self) -> None:
        for parameter in self._frozen:
            parameter.requires_grad = True
        for part in self._in_eval_mode:
            part.training = True
        self._is_frozen, self._frozen, self._in_eval_mode = False, [], []


class FreezeFinishedParams(Callback):
    """Stops gradient computation for parameters whose learning rate reached zero for good.

    Results are the same; a finished first layer saves the backward pass through it. Checked once per epoch. A
    compiled network is compiled once more. Under DDP, where ranks wait for all gradients, nothing is frozen.

    Args:
        role_ends: fraction of the training after which the parameters of a role (see `parameter_groups`) are
            finished, as for the schedule `linear`.
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
        length = Length.of(trainer)
        done = (length.done - length.into_epoch) / length.steps  # a resumed run may be within an epoch
        groups = trainer.optimizers[0].param_groups
        ended = [group for group in groups if done >= self.role_ends.get(group.get("role", ""), float("inf"))]
        if len(ended) == len(groups):  # a loss needs a gradient
            return
        for group in ended:
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
    """Return the largest modules that have none of the head's parameters, in the order of the network."""
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
    """Wrap the model again: DDP decides only then which gradients it waits for."""
    wrapped = strategy.model
    assert isinstance(wrapped, DistributedDataParallel)
    wrapped._remove_autograd_hooks()
    strategy.model = wrapped.module
    strategy.configure_ddp()
    torch.distributed.barrier()
