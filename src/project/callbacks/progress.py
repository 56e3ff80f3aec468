"""What is seen while a run trains: a line an epoch and, on a terminal, a bar over the whole training."""

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

COLUMNS = (
    ("train/loss", "train loss", "{:.4f}"),
    ("train/acc", "train acc", "{:.4f}"),
    ("val/loss", "val loss", "{:.4f}"),
    ("val/acc", "val acc", "{:.4f}"),
)
WIDE = 1e5
"""From which on a number does not fit its column."""
BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {rate_fmt}{postfix}"


class Progress(ProgressBar):
    """Epoch lines through `logging`, so that they stand in the run's log too, and a bar on standard error.

    Without a terminal there is no bar; a line tells of long epochs instead.

    Args:
        heartbeat_s: seconds between such lines.
        every_epochs: epochs from line to line; the last one has a line in any case.
    """

    visits_chunks = True

    def __init__(
        self, heartbeat_s: Annotated[float, Range(0)] = 60.0, every_epochs: Annotated[int, Range(1)] = 1
    ) -> None:
        super().__init__()
        self.heartbeat_s = heartbeat_s
        self.every_epochs = every_epochs
        self._enabled = True
        self._bar: tqdm[Any] | None = None
        self._validated = False  # since the last line
        self._ended: tuple[L.Trainer, str, float] | None = None  # an epoch whose line is not printed yet
        self._epoch_began = 0.0
        self._last_sign = 0.0
        self._batches = 0

    def enable(self) -> None:
        """Show progress (Lightning calls this on rank 0)."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing (Lightning calls this on other ranks)."""
        self._enabled = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar and print the head of the epoch lines."""
        if not self._enabled:
            return
        self._epoch_began = self._last_sign = time.monotonic()  # a resumed run may be within one
        self._print(_head(trainer))
        self._batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        self._open(self._training_batches(trainer), "training")
        assert self._bar is not None
        self._bar.update(self._batches)
        self._bar.unpause()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the line of the epoch before, whose metrics are complete by now."""
        if trainer.current_epoch % self.every_epochs == 0:
            self._flush()
        self._epoch_began = self._last_sign = time.monotonic()
        if self._bar is not None:
            self._bar.set_description_str(f"epoch {_epoch(trainer)}")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        if self._bar is None:
            return
        before, self._batches = self._batches, trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if self._bar.disable:
            self._give_sign(trainer, pl_module, batch_idx)
        elif self._bar.update(self._batches - before):
            self._bar.set_postfix_str(_latest(trainer, pl_module), refresh=False)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the epoch's time; the line waits until its metrics are complete."""
        if not self._enabled:
            return
        seconds = time.monotonic() - self._epoch_began
        self._ended = (trainer, _epoch(trainer), seconds)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the last line and close the bar."""
        self._flush()
        self._close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Print what is known, and leave the terminal clean."""
        self._flush()
        self._close()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show a bar for an evaluation that stands alone."""
        if self._enabled and trainer.state.fn == "validate":
            self._open(sum(trainer.num_val_batches), "validating")

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Move the bar of an evaluation that stands alone."""
        if self._bar is not None and trainer.state.fn == "validate":
            self._bar.update(1)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar of an evaluation that stands alone."""
        self._validated = True
        if trainer.state.fn == "validate":
            self._close()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show a bar."""
        if self._enabled:
            self._open(sum(trainer.num_test_batches), "testing")

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(1)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def _training_batches(self, trainer: L.Trainer) -> float | None:
        """Batches of the whole training, of which some may have been larger; None if only time ends it."""
        length, accumulate, left = Length.of(trainer), trainer.accumulate_grad_batches, []
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            epochs = trainer.max_epochs - length.taken["epoch"]
            left.append(epochs * trainer.num_training_batches - length.into_epoch * accumulate)
        if trainer.max_steps > 0:
            left.append((trainer.max_steps - trainer.global_step) * accumulate)
        return self._batches + min(left) if left else None

    def _open(self, total: float | None, description: str) -> None:
        self._close()
        self._bar = tqdm(
            total=total,
            desc=description,
            unit=" step",
            bar_format=BAR if total else None,
            dynamic_ncols=True,
            leave=False,
            disable=None,  # on a terminal only
            file=sys.stderr,
        )

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _flush(self) -> None:
        if self._ended is not None:
            trainer, epoch, seconds = self._ended
            self._print(f"{epoch:>9}{_metrics(trainer, self._validated)} {seconds:8.1f}")
            self._validated = False
            self._ended = None

    def _print(self, line: str) -> None:
        if self._bar is not None and not self._bar.disable:
            self._bar.clear()
            log.info(line)
            self._bar.refresh()
        else:
            log.info(line)

    def _give_sign(self, trainer: L.Trainer, pl_module: L.LightningModule, batch_idx: int) -> None:
        now = time.monotonic()
        if now - self._last_sign >= self.heartbeat_s:
            self._last_sign = now
            done = (batch_idx + 1) / trainer.num_training_batches
            log.info("epoch %s %3.0f%% %s", _epoch(trainer), 100 * done, _latest(trainer, pl_module))


def _epoch(trainer: L.Trainer) -> str:
    last = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else "–"
    return f"{trainer.current_epoch + 1}/{last}"


def _latest(trainer: L.Trainer, pl_module: L.LightningModule) -> str:
    metrics: dict[str, Any] = getattr(pl_module, "latest", None) or trainer.progress_bar_metrics
    return " ".join(
        f"{label} {metrics[key]:.3f}"
        for key, label in (("train/loss", "loss"), ("train/acc", "acc"))
        if key in metrics
    )


def _shown(trainer: L.Trainer) -> list[tuple[str, str, str]]:
    # Lightning knows of validation batches only when the first validation has come.
    ours = getattr(trainer.datamodule, "validates", None)  # type: ignore[attr-defined]
    validates = sum(trainer.num_val_batches) > 0 if ours is None else ours and trainer.limit_val_batches != 0
    return [column for column in COLUMNS if validates or not column[0].startswith("val/")]


def _head(trainer: L.Trainer) -> str:
    titles = "".join(f"{title:>12}" for _, title, _ in _shown(trainer))
    return f"{'epoch':>9}{titles}{'lr':>10}{'seconds':>9}"


def _metrics(trainer: L.Trainer, validated: bool) -> str:
    """Cells of a line; those of a validation stay empty in an epoch that had none."""
    measured = trainer.callback_metrics
    known = {key: float(value) for key, value in measured.items() if validated or key[:4] != "val/"}
    cells = [f"{_number(form, known[key]) if key in known else '':>12}" for key, _, form in _shown(trainer)]
    lr = trainer.optimizers[0].param_groups[0]["lr"] if trainer.optimizers else float("nan")
    return "".join(cells) + f"{lr:10.2g}"


def _number(form: str, value: float) -> str:
    return form.format(value) if abs(value) < WIDE else f"{value:.3g}"
