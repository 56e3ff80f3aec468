"""Training and evaluation metrics, and their logging."""

import math
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.utilities.memory import is_oom_error
from torch import Tensor, nn
from torchmetrics import Metric

from project.errors import InputError, summarize
from project.modules.losses import TotalWeight

MAX_BUFFERED_BATCHES = 64
MAX_BUFFERED_LOGITS = 2**22
"""Limits of the buffer of `LossAndAccuracy`, in batches and in logits."""

MISFITS = (ValueError, RuntimeError, TypeError, IndexError, KeyError, AttributeError, AssertionError)
"""Exceptions that metrics raise for predictions and targets of another kind."""
ANOTHER = "name another metric"


def log_metrics(
    module: L.LightningModule, curves: Mapping[str, float], results: Mapping[str, float] | None = None
) -> None:
    """Send metrics to the loggers and to `trainer.callback_metrics`.

    All metrics of a run are logged by this function. `LightningModule.log` alone does not suffice: its
    interval ignores the last batch of an epoch, validation is logged one step early, and each call takes
    milliseconds.

    Args:
        module: attached to a trainer.
        curves: values for the loggers, logged at the current number of optimizer steps.
        results: values for `trainer.callback_metrics`, which callbacks monitor.
    """
    trainer = module.trainer
    if curves:
        for logger in trainer.loggers:
            logger.log_metrics({**curves, "epoch": trainer.current_epoch}, step=trainer.global_step)
    if results and trainer.training:
        trainer.callback_metrics.update({name: torch.as_tensor(value) for name, value in results.items()})
    elif results:
        module.log_dict(dict(results), logger=False)  # `trainer.test` returns these too


class NamedMetrics(nn.Module):
    """Metrics of one split, by name.

    Args:
        metrics: cloned, with their states.

    Raises:
        InputError: one of them is no `torchmetrics.Metric`.
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        super().__init__()
        for name, metric in metrics.items():
            if not isinstance(metric, Metric):
                kind = type(metric).__name__
                raise InputError(f"metrics.{name}: not a metric (expected torchmetrics.Metric, got {kind})")
        self.names = list(metrics)
        # An `nn.ModuleDict` refuses names of its own methods.
        self._metrics = nn.ModuleList(metric.clone() for metric in metrics.values())
        self.is_empty = True  # no batch since the last `read`

    def items(self) -> list[tuple[str, Any]]:
        """Return the names and metrics."""
        return list(zip(self.names, self._metrics, strict=True))

    def update(self, outputs: Any, targets: Any) -> None:
        """Add a batch of outputs and targets.

        Raises:
            InputError: a metric rejects the first batch.
        """
        self.is_empty = False
        for name, metric in self.items():
            try:
                metric.update(outputs, targets)
            except MISFITS as error:
                if metric.update_count > 1 or is_unrelated(error):
                    raise
                raise InputError(misfit(name, metric, outputs, targets, error)) from error

    def try_batch(self, outputs: Any, targets: Any, fixes: Mapping[str, str] = MappingProxyType({})) -> None:
        """Measure copies of the metrics on a batch, with all checks of torchmetrics.

        Args:
            outputs: as for `update`.
            targets: as for `update`.
            fixes: end of the message about a metric that does not fit, by name.

        Raises:
            InputError: a metric rejects the batch, or computes a value that cannot be logged.
        """
        for name, metric in self.items():
            trial = metric.clone()
            trial.sync_on_compute = False
            trial.validate_args = True  # some classes have it off, and compute nonsense
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a batch of a few inputs may lack classes
                try:
                    _refuse_labels_for_classes(metric, outputs, targets)
                    trial.update(outputs, targets)
                    value = trial.compute()
                except MISFITS as error:
                    raise InputError(
                        misfit(name, metric, outputs, targets, error, fixes.get(name, ANOTHER))
                    ) from error
            scalars_of(name, value)

    def read(self) -> dict[str, float]:
        """Return the values over the batches of all ranks since the last `read`, and reset; collective.

        Raises:
            InputError: a metric computes a value that cannot be logged.
        """
        values: dict[str, float] = {}
        for name, metric in self.items():
            values |= scalars_of(name, metric.compute())
            metric.reset()
        self.is_empty = True
        return values


def misfit(
    name: str, metric: Metric, outputs: Any, targets: Any, error: Exception, fix: str = ANOTHER
) -> str:
    """Return the message about a metric that rejects a batch of predictions and targets."""
    kind, reason = type(metric).__name__, summarize(error).rstrip(".")
    return (
        f"metrics.{name}: {kind} does not fit the task, with predictions {_kind_of(outputs)} and targets "
        f"{_kind_of(targets)} ({reason}); {fix}"
    )


def _refuse_labels_for_classes(metric: Metric, outputs: Any, targets: Any) -> None:
    """Refuse what torchmetrics accepts and computes nonsense of: one probability per class index."""
    is_one_each = isinstance(outputs, Tensor) and outputs.is_floating_point() and outputs.ndim == targets.ndim
    if is_one_each and type(metric).__name__.startswith("Multiclass"):
        raise ValueError("it takes probabilities (B, K, …) for targets (B, …)")


def _kind_of(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} ({', '.join(['B', *map(str, value.shape[1:])])})"


def is_unrelated(error: Exception) -> bool:
    """Return True for errors that no configuration key explains."""
    is_other = isinstance(error, InputError | torch.OutOfMemoryError | torch.AcceleratorError)
    return is_other or is_oom_error(error)


def scalars_of(name: str, value: Any) -> dict[str, float]:
    """Return the scalars of a metric's value: itself, or the items `NAME_KEY` of a vector or dict.

    Raises:
        InputError: it is neither a scalar nor a vector nor a dict of these.
    """
    if isinstance(value, Mapping):
        items = [scalars_of(f"{name}_{key}", one) for key, one in value.items()]
        return {key: one for item in items for key, one in item.items()}
    if isinstance(value, Tensor) and value.numel() == 1:
        return {name: float(value)}
    if isinstance(value, Tensor) and value.ndim == 1:
        return {f"{name}_{index}": one for index, one in enumerate(value.tolist())}
    got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise InputError(
        f"metrics.{name}: its value cannot be logged (expected a scalar or one for each class, got {got}); "
        "leave it out"
    )


class LossAndAccuracy(Metric):
    """Mean loss and accuracy over images, accumulated on the device of the batches.

    Batches are buffered and summed together, which saves kernel launches. Only `read` synchronizes with the
    device. The grouping of batches, and so the rounding, depends only on their number and shapes. Under DDP,
    `read` sums over all ranks, and every image counts exactly once.

    With class weights w, the mean loss is Σ wℓ / Σ w over all images, not the mean of the batches' means.

    Args:
        total_weight: maps the targets of n batches, (n, B) or (n, B, K), to Σ w (n,), the divisor of each
            batch's loss; None: divide by the number of images.
        has_accuracy: the outputs are logits, from which correct predictions are counted [True].
    """

    full_state_update = False
    loss: Tensor
    correct: Tensor
    images: Tensor
    weight: Tensor

    def __init__(self, total_weight: TotalWeight | None = None, *, has_accuracy: bool = True) -> None:
        super().__init__(sync_on_compute=False)
        self.has_accuracy = has_accuracy
        self.total_weight = total_weight
        self.add_state("loss", torch.zeros(()))
        self.add_state("correct", torch.zeros((), dtype=torch.long))
        self.add_state("images", torch.zeros((), dtype=torch.long))
        self.add_state("weight", torch.zeros(()))
        self.read_losses: list[Tensor] = []
        """Losses (n,) of the batches up to the last `read`, on this rank, in groups."""
        self._losses: list[Tensor] = []  # of the same kind, since then
        self.num_images = 0  # on this rank since the last `read`, without buffered batches
        self._buffer: list[tuple[Tensor, Tensor, Tensor]] = []  # loss, logits, targets
        # Loss, weight and correct predictions of batches from a checkpoint, which precede the buffer.
        self._restored: list[tuple[Tensor, Tensor, Tensor]] = []
        self._shapes: tuple[torch.Size, ...] = ()
        self._max_batches = 0

    @property
    def num_pending_images(self) -> int:
        """Number of this rank's images since the last `read`; does not synchronize with the device."""
        return self.num_images + (self._num_batches * self._shapes[1][0] if self._shapes else 0)

    @property
    def is_empty(self) -> bool:
        """Return True if no batch was appended since the last `read`."""
        return not self._num_batches and not self.num_images

    def append(self, loss: Tensor, logits: Any, targets: Any) -> None:
        """Buffer a batch: its mean loss, logits (B, K), and targets (B,) or (B, K).

        The logits must not be overwritten before they are summed. Without accuracy, outputs may be of any
        kind, and targets need a length only, unless the loss has class weights.
        """
        if not self.has_accuracy:
            logits = loss.new_empty(len(targets), 0)
            targets = logits if self.total_weight is None else targets
        shapes = logits.shape, targets.shape
        if shapes != self._shapes or self._num_batches >= self._max_batches:
            self._sum_buffer()
            self._shapes = shapes
            self._max_batches = _max_buffered_batches(logits.numel())
        self._buffer.append((loss.detach(), logits.detach(), targets))

    def update(self, losses: Tensor, weights: Tensor, correct: Tensor, batch_size: int) -> None:
        """Add n batches of equal size: mean losses, their divisors and correct predictions, each (n,)."""
        # Lightning converts the sums to half precision too, in which small addends are lost.
        self._losses.append(losses)
        self.loss = self.loss.float() + _weighted_sum(losses, weights)
        self.weight = self.weight.float() + weights.sum()
        self.correct += correct.sum()
        self.images += len(losses) * batch_size
        self.num_images += len(losses) * batch_size

    def compute(self) -> Tensor:
        return self._sums()

    def _sums(self) -> Tensor:
        """Return the sums (4,) of losses, correct predictions, images and weights on this rank."""
        exact = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.stack([value.to(exact) for value in (self.loss, self.correct, self.images, self.weight)])

    def read(self) -> dict[str, float]:
        """Return the means over the images of all ranks since the last `read`, and reset.

        Returns:
            `loss`, `acc`, `images` (number of images) and `weight` (divisor of the loss).
        """
        self._sum_buffer()
        sums = self._sums()
        self.read_losses, self._losses = self._losses, []
        self.reset()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        loss, correct, images, weight = sums.tolist()
        mean = loss / weight if weight else math.nan
        accuracy = {"acc": correct / images} if self.has_accuracy else {}
        return {"loss": mean, **accuracy, "images": images, "weight": weight}

    def reset(self) -> None:
        self._buffer.clear()
        self._restored.clear()
        self.num_images = 0
        super().reset()

    def export(self) -> dict[str, Any]:
        """Return the state of all ranks since the last `read`, for a checkpoint; collective."""
        none = torch.zeros(0, device=self.device)
        losses, weights, correct = (
            self._buffered_batches() if self._num_batches else (none, none, none.long())
        )
        return {
            "sums": _gather(self._sums()),
            "losses": _gather(losses),
            "weights": _gather(weights),
            "correct": _gather(correct),
            "shapes": [list(shape) for shape in self._shapes],
        }

    def restore(self, exported: Mapping[str, Any], rank: int, world_size: int) -> None:
        """Restore a result of `export`; if the number of ranks differs, rank 0 takes all sums."""
        self.reset()
        self._shapes = tuple(torch.Size(shape) for shape in exported["shapes"])
        size = self._shapes[1][0] if self._shapes else 0
        parts = {"weights": torch.full_like(exported["losses"], size), **exported}
        names = ("sums", "losses", "weights", "correct")
        sums, losses, weights, correct = (parts[name].to(self.device) for name in names)
        if sums.shape[1] == 3:  # older checkpoints have no weights: each image has weight 1
            sums = torch.cat([sums, sums[:, 2:]], dim=1)
        if len(sums) != world_size:
            if rank or not len(sums):
                return
            held = [_weighted_sum(losses, weights), correct.sum(), losses.numel() * size, weights.sum()]
            sums = (sums.sum(0) + torch.stack([torch.as_tensor(value).to(sums) for value in held]))[None]
            losses, weights, correct = losses[:1, :0], weights[:1, :0], correct[:1, :0]
        loss, right, images, weight = sums[rank]
        self.loss, self.weight = loss.float(), weight.float()
        self.correct, self.images = right.long(), images.long()
        self.num_images = int(images)
        self._restored = list(zip(losses[rank], weights[rank], correct[rank], strict=True))
        if self._shapes:
            self._max_batches = _max_buffered_batches(self._shapes[0].numel())

    @property
    def _num_batches(self) -> int:
        return len(self._restored) + len(self._buffer)

    def _buffered_batches(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses, weights and correct predictions (n,) of the n > 0 buffered batches."""
        parts = [tuple(map(torch.stack, zip(*self._restored, strict=True)))] if self._restored else []
        if self._buffer:
            losses, logits, targets = map(torch.stack, zip(*self._buffer, strict=True))
            if self.total_weight is None:
                weights = torch.full_like(losses, targets.shape[1], dtype=torch.float)
            else:
                weights = self.total_weight(targets).float()
            parts.append((losses, weights, self._count_correct(logits, targets)))
        losses, weights, correct = map(torch.cat, zip(*parts, strict=True))
        return losses, weights, correct

    def _count_correct(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the number of correct predictions (n,) of n batches of logits (n, B, K)."""
        if not self.has_accuracy:
            return torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        labels = targets if targets.ndim == 2 else targets.argmax(dim=2)
        return (logits.argmax(dim=2) == labels).sum(dim=1)

    def _sum_buffer(self) -> None:
        if self._num_batches:
            self.update(*self._buffered_batches(), self._shapes[1][0])
            self._buffer.clear()
            self._restored.clear()


def _weighted_sum(losses: Tensor, weights: Tensor) -> Tensor:
    """Return the scalar sum of mean losses (n,) times weights (n,)."""
    weighted = losses.float() * weights
    return torch.where(weights != 0, weighted, 0.0).sum()  # torch's loss is NaN where the weights sum to 0


def _max_buffered_batches(num_logits: int) -> int:
    return min(MAX_BUFFERED_BATCHES, MAX_BUFFERED_LOGITS // max(1, num_logits))


def _gather(values: Tensor) -> Tensor:
    """Return the values (N,) of all ranks as (ranks, N) on the CPU; N is equal on all ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values[None].cpu()
    gathered = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
    if len(values):
        torch.distributed.all_gather(gathered, values)
    return torch.stack(gathered).cpu()


def confusion_counts(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Return the confusion matrix (K, K), long, of N labels and predictions: rows are true classes."""
    pairs = torch.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return pairs.view(num_classes, num_classes)


class ClassScores(NamedTuple):
    """Precision, recall and F1 of K classes, each (K, …) like the arguments of `class_scores`."""

    precision: Tensor
    recall: Tensor
    f1: Tensor

    def macro(self) -> "ClassScores":
        """Return the macro averages: means over the classes (first dimension), ignoring NaN."""
        return ClassScores(*(score.nanmean(0) for score in self))


def class_scores(correct: Tensor, images: Tensor, predicted: Tensor) -> ClassScores:
    """Compute precision, recall and F1 per class (van Rijsbergen 1979, Information Retrieval, ch. 7).

    Equals scikit-learn's `precision_recall_fscore_support` with `labels=None, zero_division=0`. A class that
    is never predicted has precision 0; a class that is predicted but has no images has recall 0. A class with
    neither images nor predictions has NaN scores; scikit-learn omits such a class. torchmetrics returns 0 for
    it, and does not accept the fractional counts of resampled images.

    Args:
        correct: number of correctly predicted images per class (K, …), float.
        images: number of images per true class (K, …).
        predicted: number of images per predicted class (K, …).
    """
    present = images + predicted > 0

    def ratio(total: Tensor) -> Tensor:
        return torch.where(present & (total == 0), 0.0, correct / total)

    return ClassScores(ratio(predicted), ratio(images), f1=2 * correct / (images + predicted))  # 0 / 0 is NaN
