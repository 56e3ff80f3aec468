"""Training progress: one log line per epoch, and a progress bar on a terminal."""

import logging
import math
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from tqdm import tqdm

from project.modules.optim.training_length import TrainingLength
from project.modules.supervised import SupervisedModule
from project.runs.metric_names import is_of_split, parse
from project.runtime.bounds import Range

log = logging.getLogger(__name__)

MAX_COLUMNS = 6
"""Maximum number of metrics in a line."""
MIN_SCIENTIFIC_VALUE = 1e5
BAR_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {rate_fmt}{postfix}"


class Progress(ProgressBar):
    """Logs one line per epoch, and draws a progress bar on standard error.

    Without a terminal, a line every `heartbeat_s` replaces the bar within long epochs.

    Args:
        heartbeat_s: time between lines within an epoch, without a terminal, in s [60].
        every_epochs: epochs between lines [1]; the last epoch is always logged.
    """

    supports_batched_hooks = True

    def __init__(
        self, heartbeat_s: Annotated[float, Range(0)] = 60.0, every_epochs: Annotated[int, Range(1)] = 1
    ) -> None:
        super().__init__()
        self.heartbeat_s = heartbeat_s
        self.every_epochs = every_epochs
        self._enabled = True
        self._bar: tqdm[Any] | None = None
        self._has_new_validation = False  # since the last line
        # Trainer, number and duration in s of a finished epoch that is not logged yet.
        self._finished_epoch: tuple[L.Trainer, str, float] | None = None
        self._epoch_started_at = 0.0
        self._last_heartbeat_at = 0.0
        self._num_batches = 0
        self._columns: list[str] = []

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:  # called by Lightning on all ranks except rank 0
        self._enabled = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._enabled:
            return
        self._epoch_started_at = self._last_heartbeat_at = (
            time.monotonic()
        )  # a resumed run may be within an epoch
        self._columns = []
        if isinstance(pl_module, SupervisedModule):
            self._print_titles(_declared_columns(trainer, pl_module))
        self._num_batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        self._open_bar(self._count_batches(trainer), "training")
        assert self._bar is not None
        self._bar.update(self._num_batches)
        self._bar.unpause()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch % self.every_epochs == 0:
            self._print_epoch()  # the previous epoch: its metrics are complete only now
        self._epoch_started_at = self._last_heartbeat_at = time.monotonic()
        if self._bar is not None:
            self._bar.set_description_str(f"epoch {_epoch(trainer)}")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is None:
            return
        before, self._num_batches = self._num_batches, trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if self._bar.disable:
            self._print_heartbeat(trainer, pl_module, batch_idx)
        elif self._bar.update(self._num_batches - before):
            self._bar.set_postfix_str(_interval_cells(trainer, pl_module), refresh=False)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._enabled:
            self._finished_epoch = (trainer, _epoch(trainer), time.monotonic() - self._epoch_started_at)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._print_epoch()
        self._close_bar()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._print_epoch()
        self._close_bar()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._enabled and trainer.state.fn == "validate":
            self._open_bar(sum(trainer.num_val_batches), "validating")

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if self._bar is not None and trainer.state.fn == "validate":
            self._bar.update(1)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._has_new_validation = True
        if trainer.state.fn == "validate":
            self._close_bar()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._enabled:
            self._open_bar(sum(trainer.num_test_batches), "testing")

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(1)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close_bar()

    def _count_batches(self, trainer: L.Trainer) -> float | None:
        """Return the total number of batches; None if it is unknown.

        A resumed run counts the batches that it has already trained with the sizes that they had.
        """
        length, accumulate, left = TrainingLength.of(trainer), trainer.accumulate_grad_batches, []
        has_length = math.isfinite(trainer.num_training_batches)
        if has_length and trainer.max_epochs is not None and trainer.max_epochs > 0:
            epochs = trainer.max_epochs - length.taken["epoch"]
            left.append(epochs * trainer.num_training_batches - length.into_epoch * accumulate)
        if trainer.max_steps > 0:
            left.append((trainer.max_steps - trainer.global_step) * accumulate)
        return self._num_batches + min(left) if left else None

    def _open_bar(self, total: float | None, description: str) -> None:
        self._close_bar()
        self._bar = tqdm(
            total=total,
            desc=description,
            unit=" step",
            bar_format=BAR_FORMAT if total else None,
            dynamic_ncols=True,
            leave=False,
            disable=None,  # on a terminal only
            file=sys.stderr,
        )

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _print_epoch(self) -> None:
        if self._finished_epoch is not None:
            trainer, epoch, seconds = self._finished_epoch
            if not self._columns:  # the first epoch shows which metrics the module logs
                self._print_titles(_logged_columns(trainer))
            cells = _metric_cells(trainer, self._columns, self._has_new_validation)
            self._print(f"{epoch:>9}{cells} {seconds:8.1f}")
            self._has_new_validation = False
            self._finished_epoch = None

    def _print_titles(self, columns: list[str]) -> None:
        self._columns = columns
        titles = "".join(f"{name.replace('/', ' '):>{_width(name)}}" for name in columns)
        self._print(f"{'epoch':>9}{titles}{'lr':>10}{'seconds':>9}")

    def _print(self, line: str) -> None:
        if self._bar is not None and not self._bar.disable:
            self._bar.clear()
            log.info(line)
            self._bar.refresh()
        else:
            log.info(line)

    def _print_heartbeat(self, trainer: L.Trainer, pl_module: L.LightningModule, batch_idx: int) -> None:
        now = time.monotonic()
        if now - self._last_heartbeat_at >= self.heartbeat_s:
            self._last_heartbeat_at = now
            done = (batch_idx + 1) / trainer.num_training_batches
            log.info("epoch %s %3.0f%% %s", _epoch(trainer), 100 * done, _interval_cells(trainer, pl_module))


def _epoch(trainer: L.Trainer) -> str:
    last = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else "–"
    return f"{trainer.current_epoch + 1}/{last}"


def _interval_cells(trainer: L.Trainer, pl_module: L.LightningModule) -> str:
    metrics: dict[str, Any] = getattr(pl_module, "interval_metrics", None) or trainer.progress_bar_metrics
    shown = [name for name in metrics if name != "v_num"][:3]
    return " ".join(f"{name.removeprefix('train/')} {float(metrics[name]):.3f}" for name in shown)


def _declared_columns(trainer: L.Trainer, module: SupervisedModule) -> list[str]:
    """Return the training and validation metrics of a module: loss, monitored metric, others."""
    # Lightning sets `num_val_batches` only at the first validation.
    ours = getattr(trainer.datamodule, "has_validation", None)  # type: ignore[attr-defined]
    validates = sum(trainer.num_val_batches) > 0 if ours is None else ours and trainer.limit_val_batches != 0
    best = trainer.checkpoint_callback
    monitored = parse(best.monitor or "").kind if isinstance(best, ModelCheckpoint) else ""
    columns = []
    for split in ("train", *["val"] * validates):
        names = sorted(module.metric_names(split), key=lambda name: (name != "loss", name != monitored))
        columns += [f"{split}/{name}" for name in names[: MAX_COLUMNS - 3]]
    return columns


def _logged_columns(trainer: L.Trainer) -> list[str]:
    """Return the metrics that were logged, without values of single steps, the monitored one first."""
    best = trainer.checkpoint_callback
    first = best.monitor if isinstance(best, ModelCheckpoint) else None
    logged = trainer.callback_metrics
    names = [name for name in logged if not name.endswith("_step") and f"{name}_epoch" not in logged]
    return sorted(names, key=lambda name: name != first)[:MAX_COLUMNS]


def _width(name: str) -> int:
    return max(12, len(name) + 2)


def _metric_cells(trainer: L.Trainer, columns: Sequence[str], has_validation: bool) -> str:
    """Return the metric cells of a line; validation cells are empty in epochs without validation."""
    metrics = trainer.callback_metrics
    known = {
        key: float(value) for key, value in metrics.items() if has_validation or not is_of_split(key, "val")
    }
    cells = [f"{_format(known[name]) if name in known else '':>{_width(name)}}" for name in columns]
    lr = trainer.optimizers[0].param_groups[0]["lr"] if trainer.optimizers else float("nan")
    return "".join(cells) + f"{lr:10.2g}"


def _format(value: float) -> str:
    return f"{value:.4f}" if abs(value) < MIN_SCIENTIFIC_VALUE else f"{value:.3g}"
