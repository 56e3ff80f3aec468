"""Checks that stop training, or saving, on NaN or infinite values."""

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
    """Raise a `NonFiniteError` if a logged loss is NaN or infinite.

    Args:
        name: name of the metric.
        value: value of the loss.
        module: LightningModule in training.
        since: optimizer step at which the loss was last finite; None: unknown.
    """
    if math.isfinite(value):
        return
    gradients = [weight.grad for weight in module.parameters() if weight.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else math.nan
    rate = module.trainer.optimizers[0].param_groups[0]["lr"]
    last_finite = "" if since is None else f" (finite until step {since})"
    raise NonFiniteError(
        f"step {module.trainer.global_step}: {name} is {value}{last_finite}, learning rate {rate:g}, "
        f"gradient norm {norm:g}; these weights are not saved; lower optim.lr, clip gradients with "
        "trainer.gradient_clip_val=1.0, or find the layer with scripts/replay.py run=RUN_FOLDER"
    )


def require_finite(module: L.LightningModule, optimizers: Sequence[Optimizer], step: int) -> None:
    """Raise a `NonFiniteError` if a weight or optimizer state holds NaN or infinity.

    Buffers may hold infinity, as attention masks do, but not NaN.
    """
    tensors = [*module.named_parameters()]
    for optimizer in optimizers:
        for number, state in enumerate(optimizer.state.values()):
            tensors += [(f"optimizer state {number}.{name}", value) for name, value in state.items()]
    flags = [(name, ~value.isfinite().all()) for name, value in tensors if _is_float(value)]
    flags += [(name, value.isnan().any()) for name, value in module.named_buffers() if _is_float(value)]
    for device in {flag.device for _, flag in flags}:
        here = [(name, flag) for name, flag in flags if flag.device == device]
        is_wrong = torch.stack(
            [flag for _, flag in here]
        ).tolist()  # the only synchronization with the device
        if any(is_wrong):
            raise NonFiniteError(
                f"step {step}: {here[is_wrong.index(True)][0]} contains NaN or infinity and is not saved; "
                "the previous checkpoint is kept; lower optim.lr, or clip gradients with "
                "trainer.gradient_clip_val=1.0"
            )


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
