"""Checks of the loss, and of the first batch's logits and targets."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from project.datamodules.targets import describe
from project.errors import InputError


def require_mean_reduction(loss: nn.Module) -> None:
    """Raise an `InputError` if a loss from torch does not average over images."""
    reduction = getattr(loss, "reduction", "mean")
    if type(loss).__module__.startswith("torch.") and reduction in ("sum", "none"):
        raise InputError(
            f"loss.reduction={reduction}: the loss must average over images (expected mean, got {reduction});"
            " set loss.reduction=mean"
        )


def require_scalar_loss(loss: Any) -> None:
    """Raise an `InputError` if a loss value is not a scalar tensor."""
    if not isinstance(loss, Tensor) or loss.ndim:
        raise InputError(
            f"loss: not a scalar (expected a scalar tensor, got {describe(loss)}); return a mean over images"
        )


def explain_forward_error(network: nn.Module, images: Tensor, reason: str) -> str:
    """Return an error message for a batch (B, C, H, W) on which the network's forward pass failed.

    Args:
        network: network in training mode.
        images: batch (B, C, H, W), or (B, …) of other inputs.
        reason: message of the original error.
    """
    name = type(network).__name__
    norms = [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.training]
    if images.device.type == "cpu" and any(isinstance(layer, nn.SyncBatchNorm) for layer in norms):
        return f"trainer.sync_batchnorm=true: needs GPUs ({reason}); set trainer.sync_batchnorm=false"
    if norms and len(images) == 1:
        return (
            f"data.batch_size: {name} does not accept one image per device ({reason}); set at least 2 images "
            "per device, or choose a model without batch norm"
        )
    if images.ndim != 4:
        return (
            f"model: {name} does not accept inputs of data.input_shape={list(images.shape[1:])} ({reason}); "
            "choose another model, such as model=mlp; --traceback shows the layer"
        )
    return (
        f"model: {name} does not accept images of data.input_shape={list(images.shape[1:])} ({reason}); "
        "choose another image size, such as data.resize=32, or another model; --traceback shows the layer"
    )


def require_logits(logits: Any, targets: Tensor, num_classes: int | None) -> None:
    """Raise an `InputError` if outputs are not logits (B, K), or targets are not classes.

    Valid targets are class indices (B,), or probabilities (B, K) whose rows sum to 1.
    """
    are_probabilities = targets.ndim == 2 and targets.is_floating_point()
    if are_probabilities and not torch.allclose(targets.sum(1), targets.new_ones(len(targets)), atol=1e-2):
        raise InputError(
            "data: targets are not class probabilities (expected rows that sum to 1, got sums from "
            f"{float(targets.sum(1).min()):g} to {float(targets.sum(1).max()):g}); for several labels per "
            "image set task=multilabel, for real values task=regression"
        )
    if not are_probabilities and (targets.ndim != 1 or targets.is_floating_point()):
        raise InputError(
            f"data: targets are not class indices (expected integers of shape [{len(targets)}], got "
            f"{describe(targets)}); return one class index per image"
        )
    shape = [len(targets), num_classes or "classes"]
    fits = isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == len(targets)
    if not fits or not logits.is_floating_point() or num_classes not in (None, logits.shape[1]):
        raise InputError(
            f"model: outputs are not logits (expected floats of shape {shape}, got {describe(logits)}); end "
            "the network with a layer that outputs one value per class"
        )


def require_label_logits(logits: Any, targets: Any, num_labels: int) -> None:
    """Raise an `InputError` if outputs are not logits (B, K), or targets no labels (B, K) from 0 to 1."""
    expected = [len(targets), num_labels]
    if not isinstance(targets, Tensor) or list(targets.shape) != expected:
        raise InputError(
            f"data: targets are not labels (expected 0 or 1 of shape {expected}, got {describe(targets)}); "
            "return one column per label, or set task=classification for one class per input"
        )
    lowest, highest = float(targets.min()), float(targets.max())
    if lowest < 0 or highest > 1:
        raise InputError(
            f"data: targets are not labels (expected 0 to 1, got {lowest:g} to {highest:g}); correct the "
            "targets, or set task=regression for real values"
        )
    _require_floats(logits, expected, "label")


def require_values(outputs: Any, targets: Any, num_targets: int) -> None:
    """Raise an `InputError` if outputs or targets are not real values (B, D)."""
    expected = [len(targets), num_targets]
    fits = isinstance(targets, Tensor) and targets.is_floating_point()
    if not fits or list(targets.shape) != expected:
        raise InputError(
            f"data: targets are not real values (expected floats of shape {expected}, got "
            f"{describe(targets)}); return targets.float(), or set task=classification for classes"
        )
    if not bool(targets.isfinite().all()):
        raise InputError("data: targets are NaN or infinite (expected finite values); remove these rows")
    _require_floats(outputs, expected, "target")


def _require_floats(outputs: Any, shape: list[int], unit: str) -> None:
    fits = isinstance(outputs, Tensor) and outputs.is_floating_point() and list(outputs.shape) == shape
    if not fits:
        raise InputError(
            f"model: outputs do not fit the targets (expected floats of shape {shape}, got "
            f"{describe(outputs)}); end the network with a layer that outputs one value per {unit}"
        )
