"""Lightning's loop over an epoch, with many batches between two visits to its hooks.

Around every batch Lightning calls a dozen hooks of each callback, and gathers what was logged; for a small
network that takes longer than the arithmetic. Here a chunk of batches runs between two such visits. Every
counter is kept batch by batch, and a chunk ends wherever something looks at one: a run is the same, bit for
bit, whatever the size of its chunks.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.trainer import call

from project.errors import InputError
from project.runtime import signals
from project.runtime.torchrun import all_reduce_max
from project.training.exact_resume import ResumableEpochLoop
from project.training.fallbacks import find_obstacle
from project.training.optimizer_step import TrainingStep, fetch_from

log = logging.getLogger(__name__)

VISIT_S = 0.2
"""Seconds that an automatic chunk aims at: often enough for a progress bar, a time limit and Ctrl-C."""


@runtime_checkable
class EveryStep(Protocol):
    """A callback or module that acts after every batch, within a chunk too."""

    def on_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Act after a batch. Not called where Lightning's own loop trains: `on_train_batch_end` is there."""
        ...


@runtime_checkable
class Keeper(Protocol):
    """A callback that keeps the state from which a run goes on."""

    every_steps: int

    @property
    def due(self) -> bool:
        """Whether the clock says that it is time to save. Rank 0 is asked."""
        ...

    def due_at(self, step: int) -> bool:
        """Whether to save after this many optimizer steps."""
        ...

    def save(self, trainer: L.Trainer) -> None:
        """Save; called on all ranks after the same optimizer step."""
        ...


class EpochLoop(ResumableEpochLoop):
    """Trains an epoch, a chunk of batches at a time.

    Before each chunk all ranks agree whether to save, and whether they were told to stop: then they save and
    raise `project.runtime.signals.Stopped`. An optimizer step that accumulates gradients is finished first.

    Args:
        trainer: whose loop this is.
        batches_per_hook: batches between two visits to Lightning's hooks; 1 visits them with each batch, by
            Lightning's own loop; null chooses a number that takes about `VISIT_S`. A chunk is cut short where
            something happens at a certain step: validation, a checkpoint, the end.
        min_steps: as `lightning.Trainer` takes it.
        max_steps: likewise.

    Raises:
        InputError: `batches_per_hook` is below 1; or, when training begins, it is more than 1 and something
            must see every batch.
    """

    def __init__(
        self,
        trainer: L.Trainer,
        batches_per_hook: int | None = None,
        *,
        min_steps: int | None,
        max_steps: int,
    ) -> None:
        if batches_per_hook is not None and batches_per_hook < 1:
            raise InputError(f"trainer.batches_per_hook={batches_per_hook}: must be at least 1, or null")
        super().__init__(trainer, min_steps=min_steps, max_steps=max_steps)
        self.batches_per_hook = batches_per_hook
        self._paced = 1
        self._chunked = False
        self._told = False
        self._first_step = -1
        self._logs = False  # whether the training step itself does
        self._marks: list[int] = []
        self._watchers: list[Callable[[L.Trainer, L.LightningModule], None]] = []
        self._keepers: list[Keeper] = []

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Find out, as an epoch begins, whether and where chunks may be cut."""
        super().on_run_start(data_fetcher)
        if self._first_step < 0:
            self._first_step = self.global_step
        obstacle = find_obstacle(self.trainer, data_fetcher)
        if obstacle and self.batches_per_hook is not None and self.batches_per_hook > 1:
            raise InputError(
                f"trainer.batches_per_hook={self.batches_per_hook}: {obstacle}; set "
                "trainer.batches_per_hook=null or 1"
            )
        if obstacle and self.batches_per_hook is None and not self._told and self.trainer.is_global_zero:
            log.info("batches are visited one by one, which takes longer: %s", obstacle)
            self._told = True
        self._chunked = obstacle is None and self.batches_per_hook != 1
        acting = (*self.trainer.callbacks, self.trainer.lightning_module)  # type: ignore[attr-defined]
        self._watchers = [watcher.on_optimizer_step for watcher in acting if isinstance(watcher, EveryStep)]
        self._marks = [
            callback._every_n_train_steps
            for callback in self.trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, ModelCheckpoint)
        ]
        self._keepers = [callback for callback in acting if isinstance(callback, Keeper)]
        self._marks += [keeper.every_steps for keeper in self._keepers]

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Train a chunk, or stop before it.

        Raises:
            Stopped: the run was told to stop; its state is saved.
        """
        # The first batch shows whether the training step logs; some callbacks have an epoch without learning.
        begun = self.global_step > self._first_step
        one_by_one = self.restarting or not (self._chunked and begun)
        one_by_one |= self.automatic_optimization._skip_backward
        count = self._agree_on(1 if one_by_one else min(self._next_chunk(), self._batches_to_mark()))
        if one_by_one:
            super().advance(data_fetcher)
            self._logs |= any(key.startswith("training_step") for key in self._results)
        else:
            self._advance_chunk(data_fetcher, count)
        if self._ends_within_epoch():
            self.save()  # before a last validation, which a run that goes on would not have had

    def _advance_chunk(self, data_fetcher: _DataFetcher, count: int) -> None:
        self.val_loop.restarting = False
        began = time.perf_counter()
        self._run(data_fetcher, count)
        seconds = time.perf_counter() - began
        if count == self._paced and seconds < VISIT_S / 2:
            self._paced *= 2
        elif seconds > VISIT_S:
            self._paced = max(1, int(self._paced * VISIT_S / seconds))

    def _next_chunk(self) -> int:
        return self._paced if self.batches_per_hook is None else self.batches_per_hook

    def _batches_to_mark(self) -> int:
        """Batches until something looks at the counters: at least 1."""
        trainer = self.trainer
        ready = self.batch_progress.current.ready
        batches = [int(trainer.num_training_batches) - ready]
        if self._should_check_val_epoch() and isinstance(every := trainer.val_check_batch, int):
            done = self.batch_progress.total.ready if trainer.check_val_every_n_epoch is None else ready
            batches.append(every - done % every)
        step = self.global_step
        steps = [every - step % every for every in self._marks if every > 0]
        if self._logs:
            every = trainer.log_every_n_steps  # type: ignore[attr-defined]
            steps.append(every - step % every)
        steps += [limit - step for limit in (self.min_steps, self.max_steps) if limit and limit > step]
        if steps:
            accumulate = trainer.accumulate_grad_batches
            batches.append(min(steps) * accumulate - ready % accumulate)
        return max(1, min(batches))

    def _agree_on(self, count: int) -> int:
        """Take rank 0's number of batches on all ranks, after saving or stopping where one of them must."""
        signum, due = signals.requested(), int(any(keeper.due for keeper in self._keepers))
        first = self.trainer.is_global_zero
        count, signum, due = all_reduce_max(self.trainer, count if first else 0, signum, due if first else 0)
        # At an epoch's begin there is nothing to save: its callbacks' work at the end of the last one has.
        if (signum or due or self._is_due()) and self._between_steps() and self.batch_progress.current.ready:
            self.save()
            if signum:
                raise signals.Stopped(signum)
        accumulate = self.trainer.accumulate_grad_batches
        to_step = accumulate - self.batch_progress.current.ready % accumulate
        return min(count, to_step) if signum or due else count

    def _is_due(self) -> bool:
        return any(keeper.due_at(self.global_step) for keeper in self._keepers)

    def _between_steps(self) -> bool:
        """Whether no gradients of a step to come are accumulated."""
        progress = self.batch_progress
        return not self.restarting and progress.current.ready % self.trainer.accumulate_grad_batches == 0

    def _ends_within_epoch(self) -> bool:
        """Whether a limit has just ended the training before the epoch's last batch."""
        trainer = self.trainer
        ended = self._is_training_done or (trainer.should_stop and trainer.fit_loop._can_stop_early)
        return ended and not self.batch_progress.is_last_batch and self._between_steps()

    def save(self) -> None:
        """Have the state kept from which the run goes on; all ranks must call this."""
        for keeper in self._keepers:
            keeper.save(self.trainer)

    def _broadcast_sigterm_tensor(self) -> None:
        """Do nothing in Lightning's own advance: `_agree_on` has."""

    def _run(self, data_fetcher: _DataFetcher, count: int) -> None:
        """Train `count` batches between one visit to Lightning's hooks before them and one after."""
        trainer, module, progress = self.trainer, self.trainer.lightning_module, self.batch_progress
        fetch, step = fetch_from(data_fetcher), TrainingStep(trainer, self)
        schedules = any(config.interval == "step" for config in trainer.lr_scheduler_configs)
        results = trainer._results
        assert results is not None
        outputs: dict[str, Any] = {}
        batch = None
        for number in range(count):
            try:
                fetched = fetch()
            except StopIteration:  # the loader had promised more
                if number:
                    self._visit_after(outputs, batch)
                raise
            if number:
                self._leave_batch()
            batch = step.convert(fetched)
            progress.is_last_batch = data_fetcher.done
            progress.increment_ready()
            if not number:
                self._visit_before(batch)
            results.batch, results.batch_size = batch, None  # for a training step that logs
            progress.increment_started()
            outputs = step(batch, self.batch_idx)
            progress.increment_processed()
            if schedules:
                self.update_lr_schedulers("step", update_plateau_schedulers=False)
            if number == count - 1 and self._num_ready_batches_reached():
                self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
            for watch in self._watchers:
                watch(trainer, module)
        self._visit_after(outputs, batch)

    def _visit_before(self, batch: Any) -> None:
        trainer = self.trainer
        trainer._logger_connector.on_batch_start(batch)
        call._call_callback_hooks(trainer, "on_train_batch_start", batch, self.batch_idx)
        call._call_lightning_module_hook(trainer, "on_train_batch_start", batch, self.batch_idx)
        call._call_strategy_hook(trainer, "on_train_batch_start", batch, self.batch_idx)
        trainer.lightning_module._current_fx_name = "training_step"  # for a training step that logs

    def _visit_after(self, outputs: Any, batch: Any) -> None:
        trainer = self.trainer
        trainer.lightning_module._current_fx_name = None
        call._call_callback_hooks(trainer, "on_train_batch_end", outputs, batch, self.batch_idx)
        call._call_lightning_module_hook(trainer, "on_train_batch_end", outputs, batch, self.batch_idx)
        trainer._logger_connector.on_batch_end()
        self.batch_progress.increment_completed()
        trainer._logger_connector.update_train_step_metrics()

    def _leave_batch(self) -> None:
        """Count a batch within a chunk as done."""
        if self.trainer.accumulate_grad_batches == 1 or not self._should_accumulate():
            self._batches_that_stepped += 1
        self.batch_progress.increment_completed()
