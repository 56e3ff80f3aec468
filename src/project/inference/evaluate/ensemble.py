"""Several networks as one: the mean of what they say, or one network with the mean of their weights."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from project.errors import InputError
from project.inference.evaluate.forward import Pass
from project.inference.evaluate.metrics import Predictions
from project.inference.load_run import Trained, plain_module
from project.modules.losses import total_weight_of

STATISTICS_IMAGES = 2048
"""Training images from which the statistics of batch norm are computed anew."""
BATCH = 256
NOT_ARCHITECTURE = ("weights", "freeze")
"""Keys of a network that say nothing of its layers; nor do those with `drop` in their names."""


def ensemble(members: Sequence[Trained], passes: Sequence[Pass]) -> Pass:
    """Take the mean of the networks' probabilities (Lakshminarayanan et al. 2017, arXiv 1612.01474,
    sec. 2.4).

    The loss is that of the first run where it is a cross-entropy, which can be had of probabilities.

    Args:
        members: the networks.
        passes: what each said of the same images, which is up to the caller: see `alike`.

    Raises:
        InputError: the run of one of them tests fewer images.
    """
    first = passes[0]
    for trained, other in zip(members, passes, strict=True):
        if len(other.rows) != len(first.rows):
            raise InputError(
                f"run={trained.run.shown}: is tested with {len(other.rows)} images, {members[0].run.shown} "
                f"with {len(first.rows)} (trainer.limit_test_batches); use combine=none"
            )
    each = torch.stack([item.predictions.log_probabilities.double() for item in passes])
    logarithms = each.logsumexp(0) - math.log(len(passes))  # of the mean of the probabilities
    labels = first.predictions.labels
    loss, losses, mean = members[0].module.loss, None, None
    if isinstance(loss, nn.CrossEntropyLoss):
        mean = float(copy.deepcopy(loss).to(logarithms)(logarithms, labels))
        if total_weight_of(loss) is None:
            smoothing = loss.label_smoothing
            losses = F.cross_entropy(logarithms, labels, reduction="none", label_smoothing=smoothing)
    predictions = Predictions(
        log_probabilities=logarithms, labels=labels, chosen=logarithms.argmax(1), losses=losses
    )
    return replace(
        first,
        predictions=predictions,
        loss=mean,
        acc=float(predictions.right.double().mean()),
    )


def require_same_classes(first: Trained, other: Trained) -> None:
    """Make sure that two networks mean the same by their outputs.

    Raises:
        InputError: they do not.
    """
    if first.class_names != other.class_names:
        raise InputError(
            f"run={other.run.shown}: its classes are not those of {first.run.shown}; give runs of the same "
            "classes, or combine=none"
        )


def average(members: Sequence[Trained], *, recompute: bool, device: torch.device) -> Trained:
    """Make one network with the mean of the weights of several (Wortsman et al. 2022, arXiv 2203.05482,
    sec. 2: the uniform soup).

    It does as well as they do where they began with the same pretrained weights, or are of one run; networks
    trained from scratch apart have little in common, and their mean knows nothing.

    The activations are none of the networks', so batch norm's statistics are computed anew (Izmailov et al.
    2018, arXiv 1803.05407, sec. 3.2), from at most 2,048 training images of the first run, unchanged; or
    averaged like weights.

    Args:
        members: the networks.
        recompute: the statistics anew; needs the training images.
        device: where to compute them.

    Returns:
        The first run, with the mean's module.

    Raises:
        InputError: the networks are not of the same architecture, or their images were normalized otherwise.
    """
    first = members[0]
    for other in members[1:]:
        require_same_network(first, other)
    module = plain_module(first.config)
    if first.config["trainer"].get("precision") == "64-true":
        module.double()
    states = [member.module.state_dict() for member in members]
    module.load_state_dict({name: _mean([state[name] for state in states]) for name in states[0]})
    module.eval()
    if recompute and _batch_norms(module):
        _measure_statistics(module, first, device)
    return replace(first, module=module)


def _mean(values: Sequence[Tensor]) -> Tensor:
    """Mean of a weight over networks; counters, which are whole numbers, are the first one's."""
    if not values[0].is_floating_point():
        return values[0]
    return torch.stack([value.double() for value in values]).mean(0).to(values[0].dtype)


def require_same_network(first: Trained, other: Trained) -> None:
    """Make sure that two networks' weights have a mean.

    Raises:
        InputError: they have not.
    """
    require_same_classes(first, other)
    named = f"run={other.run.shown}"
    remedy = "only networks that are made alike have weights to average; use combine=ensemble"
    mine, its = (_architecture(trained.config["model"]) for trained in (first, other))
    for key in sorted(mine.keys() | its.keys(), key=lambda key: (key != "_target_", key)):
        if mine.get(key) != its.get(key):
            shown = "model" if key == "_target_" else f"model.{key}"
            raise InputError(
                f"{named}: {shown} is {_shown(its.get(key))}, that of {first.run.shown} "
                f"{_shown(mine.get(key))}; {remedy}"
            )
    weights, others = first.module.state_dict(), other.module.state_dict()
    differ = [
        name
        for name in weights.keys() | others.keys()
        if name not in weights or name not in others or weights[name].shape != others[name].shape
    ]
    if differ:
        raise InputError(f"{named}: {len(differ)} weights differ, such as {min(differ)}; {remedy}")
    for key in ("mean", "std"):
        pairs = zip(getattr(first, key), getattr(other, key), strict=True)
        if any(abs(one - another) > 0.01 for one, another in pairs):
            raise InputError(
                f"{named}: its images were normalized by data.{key}={getattr(other, key)}, those of "
                f"{first.run.shown} by {getattr(first, key)}; use combine=ensemble"
            )


def _architecture(model: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key not in NOT_ARCHITECTURE and "drop" not in key}


def _shown(value: Any) -> str:
    return value.rpartition(".")[2] if isinstance(value, str) else str(value)


def _batch_norms(module: nn.Module) -> list[_BatchNorm]:
    found = (layer for layer in module.modules() if isinstance(layer, _BatchNorm))
    return [layer for layer in found if layer.track_running_stats]


@torch.no_grad()
def _measure_statistics(module: nn.Module, trained: Trained, device: torch.device) -> None:
    """Set the statistics of batch norm to the means over batches of training images."""
    # Of another data set the weights know nothing; the same one may lie elsewhere by now.
    moved = tuple(word for word in trained.data_overrides if word.startswith(("paths.", "data.path=")))
    other = any(word.startswith("data=") for word in trained.data_overrides)
    try:
        data = replace(trained, data_overrides=() if other else moved).datamodule
        data.prepare_data()
        data.setup("fit")
    except InputError as error:
        raise type(error)(
            f"batch_norm=recompute: needs the training images: {error}; or give batch_norm=average"
        ) from error
    images = data.training_sample(STATISTICS_IMAGES)
    layers = _batch_norms(module)
    module.to(device)
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # of all batches alike
        layer.train()
    kind = next(module.parameters()).dtype
    for batch in images.split(BATCH):
        if len(batch) > 1 or len(images) == 1:
            module(batch.to(device, kind))
    module.eval().cpu()
