"""Progress of a training on the screen: a line per epoch and, on a terminal, a bar over the training."""

import logging
import sys
import time
from typing import Annotated, Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from project.modules.optim.schedules import Length
from project.runtime.bounds import Range

log = logging.getLogger(__name__)

COLUMNS = ("train/loss", "train/acc", "val/loss", "val/acc")
FIRST_WIDE_NUMBER = 1e5
BAR_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {rate_fmt}{postfix}"


class Progress(ProgressBar):
    """Logs a line per epoch, which stands in the run's log too, and draws a bar on standard error.

    Without a terminal there is no bar; long epochs have a line every `heartbeat_s` instead.

    Args:
        heartbeat_s: time between such lines, s [60].
        every_epochs: epochs between lines [1]; the last epoch has a line in any case.
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
        self._is_validated = False  # since the last line
        self._ended: tuple[L.Trainer, str, float] | None = None  # an epoch whose line is not printed yet
        self._epoch_began = 0.0
        self._last_heartbeat = 0.0
        self._batches = 0

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:  # called by Lightning on all ranks but the first
        self._enabled = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._enabled:
            return
        self._epoch_began = self._last_heartbeat = time.monotonic()  # a resumed run may be within an epoch
        titles = "".join(f"{name.replace('/', ' '):>12}" for name in _columns(trainer))
        self._print(f"{'epoch':>9}{titles}{'lr':>10}{'seconds':>9}")
        self._batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        self._open_bar(self._count_batches(trainer), "training")
        assert self._bar is not None
        self._bar.update(self._batches)
        self._bar.unpause()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch % self.every_epochs == 0:
            self._print_epoch()  # the one before, whose metrics are complete now
        self._epoch_began = self._last_heartbeat = time.monotonic()
        if self._bar is not None:
            self._bar.set_description_str(f"epoch {_epoch(trainer)}")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is None:
            return
        before, self._batches = self._batches, trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if self._bar.disable:
            self._print_heartbeat(trainer, pl_module, batch_idx)
        elif self._bar.update(self._batches - before):
            self._bar.set_postfix_str(_latest(trainer, pl_module), refresh=False)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._enabled:
            self._ended = (trainer, _epoch(trainer), time.monotonic() - self._epoch_began)

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
        self._is_validated = True
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
        """Return the batches of the training, of which some may have been larger; None: only time ends it."""
        length, accumulate, left = Length.of(trainer), trainer.accumulate_grad_batches, []
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            epochs = trainer.max_epochs - length.taken["epoch"]
            left.append(epochs * trainer.num_training_batches - length.into_epoch * accumulate)
        if trainer.max_steps > 0:
            left.append((trainer.max_steps - trainer.global_step) * accumulate)
        return self._batches + min(left) if left else None

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
        if self._ended is not None:
            trainer, epoch, seconds = self._ended
            self._print(f"{epoch:>9}{_metric_cells(trainer, self._is_validated)} {seconds:8.1f}")
            self._is_validated = False
            self._ended = None

    def _print(self, line: str) -> None:
        if self._bar is not None and not self._bar.disable:
            self._bar.clear()
            log.info(line)
            self._bar.refresh()
        else:
            log.info(line)

    def _print_heartbeat(self, trainer: L.Trainer, pl_module: L.LightningModule, batch_idx: int) -> None:
        now = time.monotonic()
        if now - self._last_heartbeat >= self.heartbeat_s:
            self._last_heartbeat = now
            done = (batch_idx + 1) / trainer.num_training_batches
            log.info("epoch %s %3.0f%% %s", _epoch(trainer), 100 * done, _latest(trainer, pl_module))


def _epoch(trainer: L.Trainer) -> str:
    last = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else "–"
    return f"{trainer.current_epoch + 1}/{last}"


def _latest(trainer: L.Trainer, pl_module: L.LightningModule) -> str:
    metrics: dict[str, Any] = getattr(pl_module, "latest", None) or trainer.progress_bar_metrics
    known = [name for name in ("loss", "acc") if f"train/{name}" in metrics]
    return " ".join(f"{name} {metrics[f'train/{name}']:.3f}" for name in known)


def _columns(trainer: L.Trainer) -> list[str]:
    # Lightning knows of validation batches only after the first validation.
    ours = getattr(trainer.datamodule, "has_validation", None)  # type: ignore[attr-defined]
    validates = sum(trainer.num_val_batches) > 0 if ours is None else ours and trainer.limit_val_batches != 0
    return [name for name in COLUMNS if validates or not name.startswith("val/")]


def _metric_cells(trainer: L.Trainer, is_validated: bool) -> str:
    """Return the cells of a line; those of a validation stay empty in an epoch without one."""
    metrics = trainer.callback_metrics
    known = {key: float(value) for key, value in metrics.items() if is_validated or key[:4] != "val/"}
    cells = [f"{_format(known[name]) if name in known else '':>12}" for name in _columns(trainer)]
    lr = trainer.optimizers[0].param_groups[0]["lr"] if trainer.optimizers else float("nan")
    return "".join(cells) + f"{lr:10.2g}"


def _format(value: float) -> str:
    return f"{value:.4f}" if abs(value) < FIRST_WIDE_NUMBER else f"{value:.3g}"
