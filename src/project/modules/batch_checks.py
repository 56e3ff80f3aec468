"""Checks of a loss, and of the outputs and targets of a first batch."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from project.datamodules.storage.preprocessing import describe
from project.errors import InputError


def require_mean(loss: nn.Module) -> None:
    """Raise an `InputError` if a loss of torch is no mean over images."""
    reduction = getattr(loss, "reduction", "mean")
    if type(loss).__module__.startswith("torch.") and reduction in ("sum", "none"):
        raise InputError(
            f"loss.reduction={reduction}: no mean over images (expected mean, got {reduction}); set "
            "loss.reduction=mean"
        )


def require_scalar(loss: Any) -> None:
    """Raise an `InputError` if a loss is no scalar tensor."""
    if not isinstance(loss, Tensor) or loss.ndim:
        raise InputError(
            f"loss: not one number (expected a scalar, got {describe(loss)}); return the mean over images"
        )


def explain_refusal(network: nn.Module, images: Tensor, reason: str) -> str:
    """Return why a network in training mode does not take a batch (B, C, H, W), and a remedy."""
    name = type(network).__name__
    norms = [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.training]
    if images.device.type == "cpu" and any(isinstance(layer, nn.SyncBatchNorm) for layer in norms):
        return f"trainer.sync_batchnorm=true: for GPUs alone ({reason}); set trainer.sync_batchnorm=false"
    if norms and len(images) == 1:
        return (
            f"data.batch_size: {name} does not take one image on each device ({reason}); choose at least 2 "
            "images for each device, or a model without batch norm"
        )
    return (
        f"model: {name} does not take images of data.input_shape={list(images.shape[1:])} ({reason}); use "
        "images of another size, as in data.resize=32, or another model; --traceback shows the layer"
    )


def require_logits(logits: Any, targets: Tensor, num_classes: int | None) -> None:
    """Raise an `InputError` for outputs that are no logits (B, K), and targets that are no classes.

    Targets are class indices (B,), or probabilities (B, K) whose rows sum to 1.
    """
    are_probabilities = targets.ndim == 2 and targets.is_floating_point()
    if are_probabilities and not torch.allclose(targets.sum(1), targets.new_ones(len(targets)), atol=1e-2):
        raise InputError(
            "data: targets are no probabilities of classes (expected rows that sum to 1, got "
            f"{float(targets.sum(1).min()):g} to {float(targets.sum(1).max()):g}); several labels for each "
            "image and regression are not trained"
        )
    if not are_probabilities and (targets.ndim != 1 or targets.is_floating_point()):
        raise InputError(
            f"data: targets are no class indices (expected integers of shape [{len(targets)}], got "
            f"{describe(targets)}); give one class for each image"
        )
    shape = [len(targets), num_classes or "classes"]
    fits = isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == len(targets)
    if not fits or not logits.is_floating_point() or num_classes not in (None, logits.shape[1]):
        raise InputError(
            f"model: outputs are no logits (expected floats of shape {shape}, got {describe(logits)}); end "
            "the network with a layer that gives one value for each class"
        )
