"""Losses and weights that are no numbers any more: training on would cost time and change nothing."""

import math
from collections.abc import Sequence

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from project.errors import NonFiniteError


def require_finite_loss(
    name: str, value: float, module: L.LightningModule, *, since: int | None = None
) -> None:
    """Make sure that a loss is a number.

    Args:
        name: as it is logged.
        value: as it was read for logging, so that nothing waits for the device but for that.
        module: that trains; what its gradients and learning rate are is told.
        since: optimizer steps after which the loss was last known to be a number.

    Raises:
        NonFiniteError: it is nan or inf.
    """
    if math.isfinite(value):
        return
    gradients = [weight.grad for weight in module.parameters() if weight.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else math.nan
    rate = module.trainer.optimizers[0].param_groups[0]["lr"]
    earlier = "" if since is None else f" (a number until step {since})"
    raise NonFiniteError(
        f"step {module.trainer.global_step}: {name} is {value}{earlier}, learning rate {rate:g}, gradient "
        f"norm {norm:g}; no checkpoint has such weights; lower optim.lr, limit gradients with "
        "trainer.gradient_clip_val=1.0, or find the cause with trainer.detect_anomaly=true"
    )


def require_finite(module: L.LightningModule, optimizers: Sequence[Optimizer], step: int) -> None:
    """Make sure that a state is worth saving.

    Buffers may hold inf, as masks of attention do, but not nan.

    Args:
        module: whose weights are looked at.
        optimizers: whose states are.
        step: optimizer steps taken, for the message.

    Raises:
        NonFiniteError: it names the first tensor that holds nan or inf.
    """
    found = [*module.named_parameters()]
    for optimizer in optimizers:
        for number, state in enumerate(optimizer.state.values()):
            found += [(f"optimizer state {number}.{name}", value) for name, value in state.items()]
    wrong = [(name, ~value.isfinite().all()) for name, value in found if _is_float(value)]
    wrong += [(name, value.isnan().any()) for name, value in module.named_buffers() if _is_float(value)]
    for device in {flag.device for _, flag in wrong}:
        flags = [(name, flag) for name, flag in wrong if flag.device == device]
        held = torch.stack([flag for _, flag in flags]).tolist()  # the only wait for the device
        if any(held):
            raise NonFiniteError(
                f"step {step}: {flags[held.index(True)][0]} holds nan or inf and is not saved; the "
                "checkpoint before it stays; lower optim.lr, or limit gradients with "
                "trainer.gradient_clip_val=1.0"
            )


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
