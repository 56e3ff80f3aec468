"""Length of a training run in epochs and optimizer steps.

Does not import torch, because the checks of configurations use it.
"""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from project.errors import InputError

if TYPE_CHECKING:
    import lightning as L
    from lightning.pytorch.callbacks import GradientAccumulationScheduler


class TrainingLength:
    """Length and progress of a training, in optimizer steps of the current size.

    The size of a step may change when a run is resumed (`data.batch_size`, `trainer.accumulate_grad_batches`,
    `trainer.limit_train_batches`). `done` converts the finished fraction of the training to steps of the
    current size; `taken` counts the steps that were actually taken. A schedule that reads the length follows
    `done`. Any other schedule, such as `step`, follows `taken`.

    Args:
        steps: optimizer steps of the training; infinite if only a time limit ends it.
        steps_per_epoch: optimizer steps per epoch.
        done: finished optimizer steps.
        into_epoch: finished optimizer steps of the current epoch.
        taken: optimizer steps and epochs taken, of any size [as `done`].
        epochs: epochs of the training, if their numbers of steps differ [None].
    """

    def __init__(
        self,
        steps: float,
        steps_per_epoch: int,
        *,
        done: int = 0,
        into_epoch: int = 0,
        taken: Mapping[str, int] | None = None,
        epochs: int | None = None,
    ) -> None:
        self._steps = steps
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self.done = int(min(done, steps))
        self.into_epoch = into_epoch
        self.taken = taken or {interval: self.done_in_units_of(interval) for interval in ("step", "epoch")}
        self.is_used = False

    @classmethod
    def of(cls, trainer: "L.Trainer") -> "TrainingLength":
        """Return the length of a trainer's training; its data loaders must be set up.

        If the training loader has no length, only `trainer.max_steps` limits the training, and an epoch
        counts as one step.
        """
        loop = trainer.fit_loop
        batch = loop.epoch_loop.batch_progress
        epoch: Any = loop.epoch_progress.current
        epochs, batches = epoch.processed, batch.current.ready
        has_ended = epoch.processed == epoch.started
        if batch.is_last_batch:
            epochs, batches = epochs + (not has_ended), 0
        elif has_ended and batches:  # a limit ended the epoch early, and the run continues within this epoch
            epochs -= 1
        taken = {"step": trainer.global_step, "epoch": epochs}
        if math.isinf(trainer.num_training_batches):
            steps = math.inf if trainer.max_steps == -1 else trainer.max_steps
            return cls(steps, 1, done=trainer.global_step, taken=taken)
        scheduler = _accumulation_scheduler(trainer)
        return cls.of_limits(
            int(trainer.num_training_batches),
            scheduler.get_accumulate_grad_batches if scheduler else trainer.accumulate_grad_batches,
            max_epochs=trainer.max_epochs or 0,
            max_steps=trainer.max_steps,
            epochs_done=epochs,
            batches_done=batches,
            steps_taken=trainer.global_step,
        )

    @classmethod
    def of_limits(
        cls,
        batches: int,
        batches_per_step: int | Callable[[int], int],
        *,
        max_epochs: int,
        max_steps: int,
        epochs_done: int = 0,
        batches_done: int = 0,
        steps_taken: int = 0,
    ) -> "TrainingLength":
        """Return the length of a training that ends at the first of two limits.

        Args:
            batches: batches per epoch.
            batches_per_step: batches per optimizer step, or a function of the epoch, from 0.
            max_epochs: limit of epochs; -1: none.
            max_steps: limit of optimizer steps; -1: none.
            epochs_done: finished epochs.
            batches_done: finished batches of the current epoch.
            steps_taken: optimizer steps taken, of any size.
        """
        differ = callable(batches_per_step)

        def accumulated(epoch: int) -> int:
            return batches_per_step(epoch) if callable(batches_per_step) else batches_per_step

        def count_steps(epochs: int) -> int:
            if not differ:
                return epochs * steps_per_epoch
            return sum(max(1, -(-batches // accumulated(epoch))) for epoch in range(epochs))

        steps_per_epoch = max(1, -(-batches // accumulated(epochs_done)))
        into_epoch = batches_done // accumulated(epochs_done)
        steps = math.inf if max_epochs == -1 else count_steps(max(max_epochs, 1))
        done = count_steps(epochs_done) + into_epoch
        if max_steps >= 0 and max_steps - steps_taken < steps - done:
            steps, done, differ = max_steps, steps_taken, False
        return cls(
            steps,
            steps_per_epoch,
            done=done,
            into_epoch=into_epoch,
            taken={"step": steps_taken, "epoch": epochs_done},
            epochs=max(max_epochs, 1) if differ and max_epochs != -1 else None,
        )

    @property
    def steps(self) -> float:
        """Optimizer steps of the training; infinite if only a time limit ends it."""
        self.is_used = True
        return self._steps

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        self.is_used = True
        return self._steps_per_epoch

    def in_units_of(self, interval: str) -> int:
        """Return the length in units of `interval`, at least 1.

        Raises:
            InputError: `interval` is neither `step` nor `epoch`, or the length is not known.
        """
        if interval not in ("step", "epoch"):
            raise InputError(f"scheduler.interval={interval}: choose from step, epoch")
        if math.isinf(self.steps):
            raise InputError(
                "trainer.max_epochs=-1: this schedule needs a known length; set trainer.max_epochs or "
                "trainer.max_steps, or choose scheduler=constant, step, exponential or plateau"
            )
        if interval == "epoch" and self._epochs is not None:
            return self._epochs
        return max(1, math.ceil(self.steps / (1 if interval == "step" else self.steps_per_epoch)))

    def done_in_units_of(self, interval: str) -> int:
        """Return the number of finished units of `interval`."""
        if interval == "step":
            return self.done
        if self._epochs is not None:
            return self.taken["epoch"]
        began, per_epoch = self.done - self.into_epoch, self._steps_per_epoch
        if math.isinf(self._steps):
            return began // per_epoch
        return math.ceil(self._steps / per_epoch) - math.ceil((self._steps - began) / per_epoch)


def _accumulation_scheduler(trainer: "L.Trainer") -> "GradientAccumulationScheduler | None":
    """Return the callback that sets `trainer.accumulate_grad_batches` at the start of each epoch, if any."""
    from lightning.pytorch.callbacks import GradientAccumulationScheduler

    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next((each for each in callbacks if isinstance(each, GradientAccumulationScheduler)), None)


def accumulated_batches(trainer: "L.Trainer", epoch: int) -> int:
    """Return the batches per optimizer step in an epoch, counted from 0."""
    scheduler = _accumulation_scheduler(trainer)
    return scheduler.get_accumulate_grad_batches(epoch) if scheduler else trainer.accumulate_grad_batches
