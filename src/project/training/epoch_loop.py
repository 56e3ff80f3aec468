"""Epoch loop that calls Lightning's hooks once per group of batches.

Lightning calls a dozen hooks of each callback for every batch, and collects logged metrics. For a small
network the hooks take longer than the arithmetic. This loop trains several batches between two calls of the
hooks. Progress counters are updated for every batch, and a group ends wherever a counter is read. Results are
therefore bit-identical for every group size.
"""

import logging
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from project.errors import InputError
from project.runtime import signals
from project.runtime.lightning_private import DataFetcher, can_stop_early, checkpoint_interval, logged_results
from project.runtime.torchrun import all_reduce_max
from project.training.exact_resume import ResumableEpochLoop
from project.training.optimizer_step import TrainingStep, fetch_from, find_obstacle
from project.training.random_streams import RandomStreams

log = logging.getLogger(__name__)

CHECK_EVERY = 16
"""Validation batches between two checks for a stop signal on several ranks; each check synchronizes them."""

HOOK_INTERVAL_S = 0.2
"""Target duration of a group, s: short enough for a progress bar, a time limit and Ctrl-C."""


@runtime_checkable
class StepListener(Protocol):
    """Callback or LightningModule whose hook is called after every batch, also within a group."""

    def on_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Handle the end of a batch; Lightning's own loop calls `on_train_batch_end` instead."""
        ...


@runtime_checkable
class CheckpointKeeper(Protocol):
    """Callback that saves the checkpoint from which a run resumes."""

    every_steps: int

    @property
    def due(self) -> bool:
        """True if the time between two checkpoints has passed; read only on rank 0."""
        ...

    def due_at(self, step: int) -> bool:
        """Return True if a checkpoint is due after this number of optimizer steps."""
        ...

    def save(self, trainer: L.Trainer) -> None:
        """Save a checkpoint; called on all ranks after the same optimizer step."""
        ...


class EpochLoop(ResumableEpochLoop):
    """Loop over the batches of an epoch, in groups.

    Before each group, all ranks agree whether to save a checkpoint and whether to stop. To stop, all ranks
    save and raise `project.runtime.signals.Stopped`. A step that accumulates gradients is finished first.

    Args:
        trainer: trainer of the run.
        batches_per_hook: batches per group; 1: Lightning's own loop; None: as many as take about
            `HOOK_INTERVAL_S`. A group ends early before a validation, a checkpoint or a limit.
        min_steps: argument of `lightning.Trainer`.
        max_steps: argument of `lightning.Trainer`.

    Raises:
        InputError: `batches_per_hook` is below 1, or above 1 although every batch needs all hooks.
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
        self._group_size = 1
        self._grouped = False
        self._reported = False
        self.data_wait_s = 0.0
        """Time that training has waited for batches, s. Loaders that make batches in this process count."""
        self._fetch_began_at = 0.0
        self._first_step = -1
        self._logs = False  # True if the training step logs
        self._boundaries: list[int] = []
        self._listeners: list[Callable[[L.Trainer, L.LightningModule], None]] = []
        self._keepers: list[CheckpointKeeper] = []

    def on_run_start(self, data_fetcher: DataFetcher) -> None:
        """Determine if batches can be grouped, and at which steps a group must end."""
        foreign = _foreign_loaders(data_fetcher)
        self._streams = RandomStreams(self.trainer, of_libraries=bool(foreign))
        if foreign:
            self._streams.start_epoch()
        super().on_run_start(data_fetcher)
        if foreign:
            self._start_foreign_epoch(foreign, data_fetcher)
        if self._first_step < 0:
            self._first_step = self.global_step
        obstacle = find_obstacle(self.trainer, data_fetcher)
        if obstacle and self.batches_per_hook is not None and self.batches_per_hook > 1:
            raise InputError(
                f"trainer.batches_per_hook={self.batches_per_hook}: {obstacle}; set "
                "trainer.batches_per_hook=null or 1"
            )
        if obstacle and self.batches_per_hook is None and not self._reported and self.trainer.is_global_zero:
            log.info("hooks are called for every batch, which is slower: %s", obstacle)
            self._reported = True
        self._grouped = obstacle is None and self.batches_per_hook != 1
        acting = (*self.trainer.callbacks, self.trainer.lightning_module)  # type: ignore[attr-defined]
        self._listeners = [
            listener.on_optimizer_step for listener in acting if isinstance(listener, StepListener)
        ]
        self._boundaries = [
            checkpoint_interval(callback)
            for callback in self.trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, ModelCheckpoint)
        ]
        self._keepers = [callback for callback in acting if isinstance(callback, CheckpointKeeper)]
        self._boundaries += [keeper.every_steps for keeper in self._keepers]

    def advance(self, data_fetcher: DataFetcher) -> None:
        """Train a group of batches, or stop before the group.

        Raises:
            Stopped: the process received a stop signal; the state is saved.
        """
        # The first batch shows if the training step logs. Some callbacks train an epoch without steps.
        begun = self.global_step > self._first_step
        one_by_one = self.restarting or not (self._grouped and begun)
        one_by_one |= self.skips_backward
        count = self._agree_on(1 if one_by_one else min(self._target_size(), self._batches_to_boundary()))
        if one_by_one:
            self._streams.start_batch(self.batch_progress.current.ready)
            super().advance(data_fetcher)
            self._logs |= self.has_logged_in_step()
        else:
            self._advance_group(data_fetcher, count)
        if self._ends_within_epoch():
            self.save()  # before the final validation, which a resumed run must not find as done

    def before_fetch(self) -> None:
        self._fetch_began_at = time.perf_counter()

    def after_fetch(self) -> None:
        self.data_wait_s += time.perf_counter() - self._fetch_began_at

    def _start_foreign_epoch(self, loaders: list[Any], data_fetcher: DataFetcher) -> None:
        """Start the iteration of loaders that are not ours, at the batch where the run resumes.

        Their order and the seeds of their workers depend only on the epoch. Batches that were trained before
        are read again, unless the loaders restore their own state.
        """
        trained = self.batch_progress.current.ready
        if trained and all(hasattr(loader, "load_state_dict") for loader in loaders):
            return
        was_started_seeded = (
            self.trainer.current_epoch > 0 and not self.trainer.fit_loop.is_resuming and not self.restarting
        )
        if trained or (not was_started_seeded and any(getattr(one, "num_workers", 0) for one in loaders)):
            self._streams.start_epoch()
            iter(data_fetcher)
        if trained:
            log.info("reading the first %s batches of the epoch again, to resume after them", trained)
        for batch_idx in range(trained):
            self._streams.start_batch(batch_idx)
            next(data_fetcher)

    def _advance_group(self, data_fetcher: DataFetcher, count: int) -> None:
        self.val_loop.restarting = False
        began = time.perf_counter()
        self._run(data_fetcher, count)
        seconds = time.perf_counter() - began
        if count == self._group_size and seconds < HOOK_INTERVAL_S / 2:
            self._group_size *= 2
        elif seconds > HOOK_INTERVAL_S:
            self._group_size = max(1, int(self._group_size * HOOK_INTERVAL_S / seconds))

    def _target_size(self) -> int:
        return self._group_size if self.batches_per_hook is None else self.batches_per_hook

    def _batches_to_boundary(self) -> int:
        """Return the number of batches until a counter is read, at least 1."""
        trainer = self.trainer
        ready = self.batch_progress.current.ready
        batches = [int(min(trainer.num_training_batches, sys.maxsize)) - ready]  # infinite for some loaders
        if self.validates_in_epoch() and isinstance(every := trainer.val_check_batch, int):
            done = self.batch_progress.total.ready if trainer.check_val_every_n_epoch is None else ready
            batches.append(every - done % every)
        step = self.global_step
        steps = [every - step % every for every in self._boundaries if every > 0]
        if self._logs:
            every = trainer.log_every_n_steps  # type: ignore[attr-defined]
            steps.append(every - step % every)
        steps += [limit - step for limit in (self.min_steps, self.max_steps) if limit and limit > step]
        if steps:
            accumulate = trainer.accumulate_grad_batches
            batches.append(min(steps) * accumulate - ready % accumulate)
        return max(1, min(batches))

    def _agree_on(self, count: int) -> int:
        """Return the group size of rank 0 on all ranks, after saving or stopping if any rank must."""
        signum, due = signals.requested(), int(any(keeper.due for keeper in self._keepers))
        first = self.trainer.is_global_zero
        count, signum, due = all_reduce_max(self.trainer, count if first else 0, signum, due if first else 0)
        # At the start of an epoch, the end of the previous epoch is already saved.
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
        """Return True if no gradients are accumulated."""
        progress = self.batch_progress
        return not self.restarting and progress.current.ready % self.trainer.accumulate_grad_batches == 0

    def _ends_within_epoch(self) -> bool:
        """Return True if a limit has just ended training within the epoch."""
        trainer = self.trainer
        ended = self.is_training_done or (trainer.should_stop and can_stop_early(trainer))
        return ended and not self.batch_progress.is_last_batch and self._between_steps()

    def save(self) -> None:
        """Save the checkpoint from which the run resumes; all ranks must call this method."""
        for keeper in self._keepers:
            keeper.save(self.trainer)

    def _run(self, data_fetcher: DataFetcher, count: int) -> None:
        """Train `count` batches, with hooks only before the first and after the last batch."""
        trainer, module, progress = self.trainer, self.trainer.lightning_module, self.batch_progress
        fetch, step, clock = fetch_from(data_fetcher), TrainingStep(trainer, self), time.perf_counter
        schedules = any(config.interval == "step" for config in trainer.lr_scheduler_configs)
        results = logged_results(trainer)
        outputs: dict[str, Any] = {}
        batch = None
        for number in range(count):
            self._streams.start_batch(progress.current.ready)
            began, waited_s = clock(), self.data_wait_s
            try:
                fetched = fetch()
            except StopIteration:  # the loader is shorter than its length
                if number:
                    self.call_hooks_after(outputs, batch)
                raise
            self.data_wait_s = waited_s + clock() - began
            if number:
                self.count_batch()
            batch = step.convert(fetched)
            progress.is_last_batch = data_fetcher.done
            progress.increment_ready()
            if not number:
                self.call_hooks_before(batch)
            results.batch, results.batch_size = batch, None  # for a training step that logs
            progress.increment_started()
            outputs = step(batch, self.batch_idx)
            progress.increment_processed()
            if schedules:
                self.update_lr_schedulers("step", update_plateau_schedulers=False)
            if number == count - 1 and self.is_last_batch_done():
                self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
            for listen in self._listeners:
                listen(trainer, module)
        self.call_hooks_after(outputs, batch)


def _foreign_loaders(data_fetcher: DataFetcher) -> list[Any]:
    """Return the training loaders that do not resume exactly by themselves, as `ImageLoader` does."""
    return [
        loader
        for loader in data_fetcher.combined_loader.flattened
        if not getattr(loader, "resumes_exactly", False)
    ]


class StopDuringValidation(Callback):
    """Saves the state and stops on a signal during validation; a resumed run repeats the validation.

    While gradients accumulate, the state cannot be saved: the validation and the optimizer step are finished
    first. All ranks must have the same number of validation batches.
    """

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        loop = trainer.fit_loop.epoch_loop
        if trainer.state.fn != "fit" or not isinstance(loop, EpochLoop):
            return
        if trainer.world_size > 1 and (batch_idx + 1) % CHECK_EVERY:
            return
        (signum,) = all_reduce_max(trainer, signals.requested())
        if signum and not loop.val_loop.batch_progress.is_last_batch and not loop.should_accumulate():
            loop.save()
            raise signals.Stopped(signum)
