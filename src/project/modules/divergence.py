"""A loss that is no number any more: training on would cost time and change nothing."""

import math

import lightning as L
import torch

from project.errors import NonFiniteError


def require_finite(name: str, value: float, module: L.LightningModule, *, since: int | None = None) -> None:
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
