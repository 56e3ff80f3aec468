"""Combination of several networks for the same images: mean of their probabilities or weights."""

import copy
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from project.datamodules.base import Split
from project.datamodules.image_base import ImageDataModule
from project.datamodules.loading.prefetch import explain_worker_failures
from project.errors import InputError
from project.inference.evaluate.forward import ForwardResult, set_up_split
from project.inference.evaluate.metrics import Predictions
from project.inference.load_run import TrainedRun, build_untrained
from project.modules.losses import total_weight_of

STATISTICS_IMAGES = 2048
"""Number of training images from which batch-norm statistics are recomputed."""
BATCH_SIZE = 256
NOT_ARCHITECTURE = ("weights", "freeze")
"""Keys of a network that do not change its layers, in addition to keys with `drop` in their names."""
TRAINING_KEYS = ("seed", "batch_size", "augment")
"""Keys of a data set that affect training only."""
APPEARANCE_KEYS = (
    *(*TRAINING_KEYS, "eval_batch_size", "mean", "std", "channels_last", "image_cache"),
    *("num_workers", "memory_budget_mb", "timeout_s", "input_shape", "resize", "grayscale"),
)
"""Keys that do not select images, but may change their appearance."""
MAX_SELECTIONS = 100
"""Maximum size of a greedily selected ensemble, repetitions included."""
DIGEST_CHUNK = 1024
"""Number of images per update of the digest."""


def select_greedily(log_probabilities: Sequence[Tensor], labels: Tensor) -> dict[int, int]:
    """Select networks for an ensemble (Caruana et al. 2004, "Ensemble Selection from Libraries of Models").

    Starting with none, the network is added whose addition gives the lowest negative log-likelihood of the
    mean probabilities. A network may be added several times. The selection ends when no addition lowers it.

    Args:
        log_probabilities: of the validation images, (N, K) for each network.
        labels: true classes of the images, (N,).

    Returns:
        Number of times that each selected network was added, by its position; the first added comes first.
    """
    each = torch.stack([one[torch.arange(len(labels)), labels] for one in log_probabilities]).double().exp()
    counts: dict[int, int] = {}
    total, best = torch.zeros_like(each[0]), math.inf
    for size in range(1, MAX_SELECTIONS + 1):
        losses = -((total + each) / size).log().mean(1)  # M
        position = int(losses.argmin())
        if not losses[position] < best:
            break
        best = float(losses[position])
        total = total + each[position]
        counts[position] = counts.get(position, 0) + 1
    return counts or {0: 1}  # every network gives some true class the probability 0


def average_probabilities(
    members: Sequence[TrainedRun], results: Sequence[ForwardResult], counts: Sequence[int] | None = None
) -> ForwardResult:
    """Average the networks' probabilities (Lakshminarayanan et al. 2017, arXiv 1612.01474, sec. 2.4).

    The loss is computed by the first run's loss if that is a cross-entropy, which takes probabilities.

    Args:
        members: the networks.
        results: their results for the same images.
        counts: number of times that each network counts [once].
    """
    first = results[0]
    for trained, other in zip(members, results, strict=True):
        if len(other.rows) != len(first.rows):
            raise InputError(
                f"run={trained.run.shown}: has {len(other.rows)} test images, but {members[0].run.shown} has "
                f"{len(first.rows)} (trainer.limit_test_batches); use combine=none"
            )
    each = torch.stack([result.predictions.log_probabilities.double() for result in results])  # M, N, K
    weights = torch.tensor(counts or [1] * len(results), dtype=torch.float64)
    log_mean = (each + weights.log()[:, None, None]).logsumexp(0) - weights.sum().log()  # N, K
    labels = first.predictions.labels
    loss, losses, mean_loss = members[0].module.loss, None, None
    if isinstance(loss, nn.CrossEntropyLoss):
        mean_loss = float(copy.deepcopy(loss).to(log_mean)(log_mean, labels))
        if total_weight_of(loss) is None:
            smoothing = loss.label_smoothing
            losses = F.cross_entropy(log_mean, labels, reduction="none", label_smoothing=smoothing)
    predictions = Predictions(log_mean, labels, log_mean.argmax(1), losses)
    accuracy = float(predictions.is_correct.double().mean())
    return replace(first, predictions=predictions, loss=mean_loss, accuracy=accuracy)


def average_weights(members: Sequence[TrainedRun], *, recompute: bool, device: torch.device) -> TrainedRun:
    """Build one network with the mean of the networks' weights (Wortsman et al. 2022, arXiv 2203.05482,
    sec. 2: the uniform soup).

    Averaging suits checkpoints of one run, or runs that were fine-tuned from the same pretrained weights. The
    average of networks trained from scratch makes no useful predictions.

    Args:
        members: the networks.
        recompute: recompute the batch-norm statistics (Izmailov et al. 2018, arXiv 1803.05407, sec. 3.2)
            from at most 2,048 training images of the first run; otherwise average them.
        device: device of that computation.

    Returns:
        The first run with the averaged network.

    Raises:
        InputError: the networks differ in architecture or in the normalization of their images.
    """
    first = members[0]
    for other in members[1:]:
        require_same_network(first, other)
    module = build_untrained(first.config)
    states = [member.module.state_dict() for member in members]
    module.load_state_dict({name: _mean([state[name] for state in states]) for name in states[0]})
    module.eval()
    if recompute and _batch_norms(module):
        _recompute_statistics(module, first, device)
    return replace(first, module=module)


def _mean(values: Sequence[Tensor]) -> Tensor:
    if not values[0].is_floating_point():  # counters, such as num_batches_tracked
        return values[0]
    return torch.stack([value.double() for value in values]).mean(0).to(values[0].dtype)


def require_same_classes(first: TrainedRun, other: TrainedRun) -> None:
    """Refuse networks with different classes."""
    if first.class_names != other.class_names:
        raise InputError(
            f"run={other.run.shown}: its classes are not those of {first.run.shown}; give runs of the same "
            "classes, or combine=none"
        )


def require_same_network(first: TrainedRun, other: TrainedRun) -> None:
    """Refuse networks whose weights cannot be averaged."""
    require_same_classes(first, other)
    named = f"run={other.run.shown}"
    remedy = "only networks of the same architecture have weights to average; use combine=ensemble"
    mine, its = (_architecture(trained.config["model"]) for trained in (first, other))
    for key in sorted(mine.keys() | its.keys(), key=lambda key: (key != "_target_", key)):
        if mine.get(key) != its.get(key):
            label = "model" if key == "_target_" else f"model.{key}"
            raise InputError(
                f"{named}: {label} is {_short(its.get(key))}, that of {first.run.shown} "
                f"{_short(mine.get(key))}; {remedy}"
            )
    weights, others = (
        {name: value.shape for name, value in trained.module.state_dict().items()}
        for trained in (first, other)
    )
    if differ := [name for name in weights | others if weights.get(name) != others.get(name)]:
        raise InputError(f"{named}: {len(differ)} weights differ, such as {min(differ)}; {remedy}")
    for key in ("mean", "std"):
        values, other_values = getattr(first, key), getattr(other, key)
        if any(abs(one - another) > 0.01 for one, another in zip(values, other_values, strict=True)):
            raise InputError(
                f"{named}: its images were normalized by data.{key}={other_values}, those of "
                f"{first.run.shown} by {values}; use combine=ensemble"
            )


def _architecture(model: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key not in NOT_ARCHITECTURE and "drop" not in key}


def _short(value: Any) -> str:
    return value.rpartition(".")[2] if isinstance(value, str) else str(value)


def _batch_norms(module: nn.Module) -> list[_BatchNorm]:
    found = (layer for layer in module.modules() if isinstance(layer, _BatchNorm))
    return [layer for layer in found if layer.track_running_stats]


@torch.no_grad()
def _recompute_statistics(module: nn.Module, trained: TrainedRun, device: torch.device) -> None:
    """Set batch-norm statistics to their means over batches of the run's training images."""
    try:
        data = replace(trained, data_overrides=tuple(own_data(trained.data_overrides))).datamodule
        data.prepare_data()
        data.setup("fit")
    except InputError as error:
        raise type(error)(
            f"batch_norm=recompute: needs the training images: {error}; or give batch_norm=average"
        ) from error
    images = data.training_sample(STATISTICS_IMAGES)
    module.to(device)
    for layer in _batch_norms(module):
        layer.reset_running_stats()
        layer.momentum = None  # weight all batches equally
        layer.train()
    dtype = next(module.parameters()).dtype
    for batch in images.split(BATCH_SIZE):
        if len(batch) > 1 or len(images) == 1:
            module(batch.to(device, dtype))
    module.eval().cpu()


def own_data(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that move a run's own data; none of those that select other data."""
    if any(word.startswith("data=") for word in overrides):
        return [word for word in overrides if word.startswith("paths.")]
    return [word for word in overrides if word.startswith(("paths.", "data.path="))]


class ImageIdentity(NamedTuple):
    """Data that identify the images of a split."""

    labels: Tensor
    rows: Tensor
    files: list[str] | None
    shape: tuple[int, int, int]
    digest: bytes | None
    recipe: str

    def is_same(self, other: "ImageIdentity") -> bool:
        """Return True if the images and their order are the same, at any size."""
        if not torch.equal(self.labels, other.labels):
            return False
        if self.files is not None or other.files is not None:
            return self.files == other.files
        if self.shape == other.shape:
            return self.digest == other.digest
        return self.recipe == other.recipe and torch.equal(self.rows, other.rows)


@explain_worker_failures()
def require_same_images(networks: Sequence[TrainedRun], split: Split) -> None:
    """Refuse networks whose splits have different images; afterward, networks share equal data sets."""
    _share_data(networks)
    first = networks[0]
    others = [other for other in networks[1:] if other.datamodule is not first.datamodule]
    if not others:
        return
    wanted = identify_images(first, split)
    for other in others:
        if not identify_images(other, split).is_same(wanted):
            raise InputError(
                f"run={other.run.shown}: has other images in split={split} than {first.run.shown}; give "
                "data that none was trained on to all (data=… or data.path=…), or combine=none"
            )
        release_data(other, first)


def identify_images(trained: TrainedRun, split: Split) -> ImageIdentity:
    """Return the data that identify the images of a split."""
    data = trained.datamodule
    data.prepare_data()
    set_up_split(data, split)
    images, rows = data.subset(split)
    files = data.files(split)
    return ImageIdentity(
        labels=images.labels.cpu()[rows],
        rows=rows,
        files=None if files is None else _real_paths(files),
        shape=data.input_shape,
        digest=_digest(data, split) if files is None else None,
        recipe=_as_text(trained.data_config(), without=APPEARANCE_KEYS),
    )


def lend_data(owner: TrainedRun, borrower: TrainedRun) -> None:
    """Let a network share another network's data set, whose images are in memory already."""
    vars(borrower)["datamodule"] = owner.datamodule


def release_data(trained: TrainedRun, keeper: TrainedRun) -> None:
    """Free a network's images unless `keeper` shares them; the next access reads them again."""
    if trained.datamodule is not keeper.datamodule:
        del vars(trained)["datamodule"]


def _share_data(networks: Sequence[TrainedRun]) -> None:
    owners: dict[str, TrainedRun] = {}
    for trained in networks:
        owner = owners.setdefault(_as_text(trained.data_config(), without=TRAINING_KEYS), trained)
        trained.datamodule  # noqa: B018 (checks its own classes, even if another data set is used)
        lend_data(owner, trained)


def _as_text(config: dict[str, Any], without: Sequence[str]) -> str:
    kept = {key: value for key, value in config.items() if key not in without}
    return json.dumps(kept, sort_keys=True, default=str)


def _real_paths(files: Sequence[str]) -> list[str]:
    """Resolve links in the files' folders, as several paths can lead to the same data set."""
    resolve = cache(os.path.realpath)
    return [os.path.join(resolve(folder), name) for folder, name in map(os.path.split, files)]


def _digest(data: ImageDataModule, split: Split) -> bytes:
    digest = hashlib.sha256()
    for places in torch.arange(data.count(split)).split(DIGEST_CHUNK):
        digest.update(data.pixels(split, places).flatten().numpy().data)
    return digest.digest()
