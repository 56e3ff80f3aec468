"""The first epochs of a transfer: only the new head trains."""

import logging
from typing import Annotated

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from project.errors import InputError
from project.modules.networks.blocks import blocks
from project.runtime.bounds import Range

log = logging.getLogger(__name__)


class Freeze(Callback):
    """Train the head alone at first: the large gradients of its random weights would spoil what is below.

    Everything else computes no gradients in these epochs, keeps its batch norm statistics and drops nothing
    out; a dropout behind the last of its layers is the head's. It is in the optimizer's groups from the
    beginning, where parameters without gradients are passed over: the schedule runs over the whole training
    as ever, and a run that goes on finds its groups as they were. A compiled network is compiled once more
    when the phase ends. Where nothing but the head trains anyway, that is told, and nothing done.

    Args:
        epochs: that only the head trains; 0: all trains from the start.

    Raises:
        InputError: `epochs` is below 0.
    """

    def __init__(self, epochs: Annotated[int, Range(0)] = 0) -> None:
        if epochs < 0:
            raise InputError(f"callbacks.freeze.epochs={epochs}: must be at least 0")
        self.epochs = epochs
        self._begun = False
        self._frozen: list[nn.Parameter] = []
        self._resting: list[nn.Module] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Freeze, or not: a run that goes on may be within any epoch."""
        if self.epochs and type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy):
            raise InputError(
                f"callbacks.freeze.epochs={self.epochs}: not with the strategy "
                f"{type(trainer.strategy).__name__}; set trainer.strategy=auto or ddp, or 0 epochs"
            )
        self._look(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the phase when its time has come."""
        self._look(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the network as it was."""
        self._thaw()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Leave the network as it was."""
        self._thaw()

    def _look(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        freezes = trainer.current_epoch < self.epochs
        if freezes == self._begun:
            return
        self._begun = freezes
        if freezes:
            network = pl_module.network
            assert isinstance(network, nn.Module)
            self._freeze(network)
            if not self._frozen:
                _tell(trainer, f"callbacks.freeze.epochs={self.epochs}: only the head trains anyway")
                return
            until = f"the first {self.epochs} epochs" if self.epochs > 1 else "the first epoch"
            _tell(trainer, f"only the head trains in {until}")
        elif self._frozen:
            self._thaw()
            _tell(trainer, "everything trains now")
        else:
            return
        if isinstance(trainer.strategy, DDPStrategy):
            _wrap_again(trainer.strategy)

    def _freeze(self, network: nn.Module) -> None:
        *body, head = blocks(network)
        self._frozen = [parameter for block in body for parameter in block if parameter.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad = False
            parameter.grad = None
        below = _without(network, set(head)) if self._frozen else []
        self._resting = [part for module in below for part in module.modules() if part.training]
        for part in self._resting:
            part.training = False

    def _thaw(self) -> None:
        for parameter in self._frozen:
            parameter.requires_grad = True
        for part in self._resting:
            part.training = True
        self._begun, self._frozen, self._resting = False, [], []


def _without(network: nn.Module, head: set[nn.Parameter]) -> list[nn.Module]:
    """The largest modules that have none of the head's parameters, up to the last that has parameters: what
    has none, such as a dropout, works on behalf of the layer behind it.
    """
    found = _outermost(network, head)
    while found and not any(True for _ in found[-1].parameters()):
        found.pop()
    return found


def _outermost(network: nn.Module, head: set[nn.Parameter]) -> list[nn.Module]:
    """The largest modules that have none of the head's parameters, in the order of the network."""
    found = []
    for child in network.children():
        if head.isdisjoint(child.parameters()):
            found.append(child)
        else:
            found += _outermost(child, head)
    return found


def _tell(trainer: L.Trainer, line: str) -> None:
    if trainer.is_global_zero:
        log.info(line)


def _wrap_again(strategy: DDPStrategy) -> None:
    """Have DDP wait for the gradients that there are now: it looks at that only when it wraps a model."""
    wrapped = strategy.model
    assert isinstance(wrapped, DistributedDataParallel)
    wrapped._remove_autograd_hooks()
    strategy.model = wrapped.module
    strategy.configure_ddp()
    torch.distributed.barrier()
