"""The LightningModule that trains any network on labelled images."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.memory import is_oom_error
from torch import Tensor, nn
from torch.optim import Optimizer

from project.errors import InputError, one_line
from project.modules.batch_checks import explain_refusal, require_logits, require_mean, require_scalar
from project.modules.gradients import MeanGradient, mean_gradient
from project.modules.initialization import initialize_from_images
from project.modules.losses import total_weight_of
from project.modules.metrics import LossAndAccuracy
from project.modules.nan_guard import require_finite_loss
from project.modules.optim.parameter_groups import ParameterGroups, parameter_groups, scale_learning_rates
from project.modules.optim.schedules import MEASURED, Length, Schedule, accumulated_batches, advance, constant
from project.modules.tta import mean_over_views
from project.runtime.bounds import Range
from project.runtime.seeding import NETWORK_STREAM, batch_seed

Batch = tuple[Tensor, Tensor]
"""Images (B, C, H, W), normalized, and targets: class indices (B,) or probabilities (B, K)."""


class ImageClassifier(L.LightningModule):
    """Any network that maps images to logits, with its loss, metrics, optimizer and schedule.

    Logs `train/loss`, `train/acc`, `train/lr` and what callbacks with a method `measure` add every
    `trainer.log_every_n_steps` steps and at the end of an epoch, `val/…` and `test/…` once per evaluation,
    and `val/best_…` for the weights that were chosen.

    Args:
        network: maps images (B, C, H, W) to logits (B, K).
        loss: maps logits (B, K) and targets (B,) or (B, K) to a scalar; null is cross-entropy.
        optimizer: makes the optimizer from parameter groups.
        scheduler: makes the schedule from the optimizer and the training's length (see `schedules`).
        decay_norms_and_biases: whether weight decay applies to them too.
        layer_decay: learning rate of each block of the network in units of that of the block behind it.
        compile: run the network through `torch.compile`, on a GPU as CUDA graphs, one for each shape of a
            batch; checkpoints keep their plain keys.
        channels_last: keep images and filters in channels-last memory order.
        test_views: changed copies of a test image whose logits are averaged (see `views`).
        config: what is written into every checkpoint, so that it can be rebuilt: plain values only.
        seed: with the epoch, the batch's number and the rank, decides what dropout draws; null takes that of
            `config`, else 0.

    Raises:
        InputError: the loss is no mean over images; in the first training step, the network's outputs are no
            logits, or the targets no classes.
    """

    METRICS: ClassVar = {"acc": "max", "loss": "min"}

    visits_chunks = True
    """Its hooks of batches may be called once a chunk, see `project.training.epoch_loop`."""

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module | None = None,
        optimizer: Callable[[ParameterGroups], Optimizer] = torch.optim.Adam,
        scheduler: Callable[[Optimizer, Length], Schedule] = constant,
        *,
        decay_norms_and_biases: bool = True,
        layer_decay: Annotated[float, Range(above=0, high=1)] = 1.0,
        compile: bool = False,
        channels_last: bool = False,
        test_views: Literal["none", "flip", "flip_translate"] = "none",
        config: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=self.memory_format)
        self.compile_network = compile
        self._graphed = False
        self.loss = nn.CrossEntropyLoss() if loss is None else loss
        require_mean(self.loss)
        self.optimizer_factory = optimizer
        self.scheduler_factory = scheduler
        self.decay_norms_and_biases = decay_norms_and_biases
        self.layer_decay = layer_decay
        self.test_views: str = test_views
        self.config = dict(config or {})
        self.seed = int(self.config.get("seed", 0)) if seed is None else seed
        self.total_weight = total_weight_of(self.loss)
        self.train_metrics = LossAndAccuracy(self.total_weight)
        self.eval_metrics = LossAndAccuracy(self.total_weight)
        self._epoch_sums = {"loss": 0.0, "acc": 0.0, "images": 0.0, "weight": 0.0}
        self._logged_step = 0
        self._gradient: MeanGradient | None = None
        self._checked = False
        self.latest: dict[str, float] = {}  # of the last interval, for the progress bar
        self._configured: list[dict[str, Any]] = []
        self._generators: list[torch.Generator] = []
        self._restored: dict[str, Any] = {}
        self._restored_schedules: list[dict[str, Any]] | None = None

    def setup(self, stage: str) -> None:
        """Have the network compiled when it is first used, now that its device is known."""
        if self.compile_network:
            self.compile_network = False
            self._graphed = self.trainer.strategy.root_device.type == "cuda"
            options = {"mode": "reduce-overhead", "dynamic": False} if self._graphed else {}
            self.network.compile(**options)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, K)."""
        logits: Tensor = self.network(images.contiguous(memory_format=self.memory_format))
        return logits.clone() if self._graphed else logits  # the graph's next run writes to the same place

    def configure_optimizers(self) -> Any:
        """Build the optimizer and its schedule; the trainer knows how long the training lasts."""
        initialize_from_images(self.network, self.trainer)
        optimizer = self._make_optimizer()
        self._configured = [_without_params(group) for group in optimizer.param_groups]
        self.trainer.fit_loop.setup_data()  # else the number of batches is not known yet
        schedule = _made("scheduler", self.scheduler_factory, optimizer, Length.of(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def try_optimizer(self, length: Length) -> None:
        """Make an optimizer and a schedule for a training of some length, and drop them.

        Raises:
            InputError: one of them refuses its options.
        """
        _made("scheduler", self.scheduler_factory, self._make_optimizer(), length)

    def _make_optimizer(self) -> Optimizer:
        groups = parameter_groups(
            self.network,
            decay_norms_and_biases=self.decay_norms_and_biases,
            layer_decay=self.layer_decay,
        )
        optimizer: Optimizer = _made("optim", self.optimizer_factory, groups)
        scale_learning_rates(optimizer)
        return optimizer

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what `on_train_start` restores, when the loops know how far the training is."""
        if self._trainer is None:
            return
        if self._trainer.precision == "64-true":
            self.double()  # Lightning would do that after the weights were put into single precision
        if self._trainer.state.fn == "fit":
            # Lightning would give a schedule the length and the options that it had.
            self._restored_schedules, checkpoint["lr_schedulers"] = checkpoint.get("lr_schedulers", []), []
            self._restored = checkpoint.get("training", {})
            for logger in self._trainer.loggers:
                if (name := type(logger).__name__) in self._restored.get("loggers", {}):
                    logger.load_state_dict(self._restored["loggers"][name])  # type: ignore[attr-defined]

    def on_train_start(self) -> None:
        """Go on where a checkpoint was written, with the options that are configured now."""
        self._generators = _generators(self.device)
        self._logged_step = self.trainer.global_step
        epoch = Length.of(self.trainer).taken["epoch"]
        # Lightning's callback sets it at the start of an epoch alone, and the run may resume within one.
        self.trainer.accumulate_grad_batches = accumulated_batches(self.trainer, epoch)
        self._gradient = mean_gradient(self.trainer, self.total_weight)
        if self._restored_schedules is not None:
            self._restore_schedule()
        if self._restored:
            self._go_on()

    def _restore_schedule(self) -> None:
        """Give the optimizer's groups the options configured now, and the rates that follow from them."""
        saved, self._restored_schedules = self._restored_schedules or [], None
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        before = [(group["lr"], group.get("initial_lr")) for group in optimizer.param_groups]
        for group, configured in zip(optimizer.param_groups, self._configured, strict=True):
            group.update(configured)
        length = Length.of(self.trainer)
        schedule = _made("scheduler", self.scheduler_factory, optimizer, length)
        (config,) = self.trainer.lr_scheduler_configs
        config.scheduler = schedule["scheduler"]
        if not config.reduce_on_plateau:
            advance(schedule, length)
        elif saved and saved[0].get("mode") == schedule["scheduler"].mode:
            schedule["scheduler"].load_state_dict({name: saved[0][name] for name in MEASURED})
            for group, (rate, initial) in zip(optimizer.param_groups, before, strict=True):
                group["lr"] = rate * (group["lr"] / initial if initial else 1.0)

    def _go_on(self) -> None:
        """Go on with what was measured when a checkpoint was written."""
        restored, self._restored = self._restored, {}
        sums = restored["epoch_sums"]
        self._epoch_sums = {"weight": sums["images"], **sums}  # older checkpoints have no weights
        self._logged_step = restored["logged_step"]
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        self.train_metrics.restore(restored["metrics"], rank, world_size)
        self.trainer.callback_metrics.update(restored["callback_metrics"])
        self.on_step(self.trainer, self)  # a callback may have written the checkpoint before this logged

    def on_fit_end(self) -> None:
        """Offer what was measured before to a run that goes on and has nothing left to train."""
        self._restored_schedules = None
        if self._restored:
            restored, self._restored = self._restored, {}
            self.trainer.callback_metrics.update(restored["callback_metrics"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        seed = batch_seed(self.seed, self.current_epoch, batch_idx, self.global_rank, NETWORK_STREAM)
        for generator in self._generators:
            generator.manual_seed(seed)
        images, targets = batch
        logits = self.forward(images) if self._checked else self._first_logits(images)
        loss: Tensor = self.loss(logits, targets) if self._checked else self._first_loss(logits, targets)
        self.train_metrics.append(loss, logits, targets)
        if self._gradient is not None:
            self._gradient.share(loss, targets, batch_idx)
        return loss

    def _first_logits(self, images: Tensor) -> Tensor:
        """Compute the logits of the first batch.

        Raises:
            InputError: the network does not take its images.
        """
        try:
            return self.forward(images)
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            ours = isinstance(error, InputError | torch.OutOfMemoryError | torch.AcceleratorError)
            if ours or is_oom_error(error) or self.network._compiled_call_impl is not None:
                raise
            raise InputError(explain_refusal(self.network, images, one_line(error))) from error

    def _first_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of the first batch, from what must be logits, targets and a scalar.

        Raises:
            InputError: they are not.
        """
        datamodule = getattr(self._trainer, "datamodule", None)
        require_logits(logits, targets, getattr(datamodule, "num_classes", None))
        try:
            loss = self.loss(logits, targets)
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            if isinstance(error, torch.OutOfMemoryError) or is_oom_error(error):
                raise
            raise InputError(f"loss: {one_line(error)}; choose another loss, or mend this one") from error
        require_scalar(loss)
        self._checked = True
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log, unless it was done within the chunk."""
        self.on_step(self.trainer, self)

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log what the steps since the last interval showed."""
        step = trainer.global_step
        interval_ends = step % trainer.log_every_n_steps == 0 and step > self._logged_step  # type: ignore[attr-defined]
        if interval_ends or (trainer.is_last_batch and not self.train_metrics.empty):
            self._log_interval()
        if trainer.is_last_batch:
            self._offer_means()

    def on_train_epoch_start(self) -> None:
        """Begin the epoch's sums."""
        # Callbacks may change by the epoch how many batches accumulate.
        self._gradient = mean_gradient(self.trainer, self.total_weight)
        self._epoch_sums = dict.fromkeys(self._epoch_sums, 0.0)

    def on_train_epoch_end(self) -> None:
        """See to it that nothing is left where a limit of steps or time ended the epoch early."""
        if not self.train_metrics.empty:
            self._log_interval()
        self._offer_means()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure one batch."""
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Measure one batch; return its logits (B, K), for callbacks."""
        return self._evaluate(batch, self.test_views)

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss` and `val/acc`."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log `test/loss`, `test/acc`, and `test/images`, the number of images tested."""
        self._log_evaluation("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the configuration, from which the network can be rebuilt, and what was measured so far.

        Under DDP all ranks must come here.
        """
        checkpoint["config"] = self.config
        if self.trainer.state.fn != "fit":
            return
        metrics = {name: value.detach().cpu() for name, value in self.trainer.callback_metrics.items()}
        loggers = [logger for logger in self.trainer.loggers if hasattr(logger, "state_dict")]
        checkpoint["training"] = {
            "epoch_sums": dict(self._epoch_sums),
            "logged_step": self._logged_step,
            "metrics": self.train_metrics.export(),
            "callback_metrics": metrics,
            "loggers": {type(logger).__name__: logger.state_dict() for logger in loggers},
        }

    def _log_interval(self) -> None:
        """Write what the steps since the last interval showed; begin the next one."""
        since, self._logged_step = self._logged_step, self.global_step
        means = self.train_metrics.read()
        images, weight = means.pop("images"), means.pop("weight")
        sums = {"loss": means["loss"] * weight, "acc": means["acc"] * images}
        for name, value in (sums | {"images": images, "weight": weight}).items():
            self._epoch_sums[name] += value
        self.latest = {f"train/{name}": value for name, value in means.items()}
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        values = self.latest | {"train/lr": optimizer.param_groups[0]["lr"]}
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, "measure"):
                values |= callback.measure(self.trainer, self, images)
        self._write(values)
        require_finite_loss("train/loss", means["loss"], self, since=since)

    def _offer_means(self) -> None:
        """Offer the epoch's means to callbacks that watch `train/loss` or `train/acc`.

        Not by `self.log`, which takes milliseconds for a number that stands already.
        """
        for name, count in (("loss", "weight"), ("acc", "images")):
            mean = self._epoch_sums[name] / (self._epoch_sums[count] or 1)
            self.trainer.callback_metrics[f"train/{name}"] = torch.tensor(mean)

    def _evaluate(self, batch: Batch, views: str = "none") -> Tensor:
        images, targets = batch
        logits = mean_over_views(self, images, views)
        self.eval_metrics.append(self.loss(logits, targets), logits, targets)
        return logits

    def _log_evaluation(self, split: str) -> None:
        measured = self.eval_metrics.read()
        images, _ = measured.pop("images"), measured.pop("weight")
        # After training the chosen weights are validated once more: no point of the curve of val/….
        shown = f"{split}/best_" if self.trainer.state.fn == "validate" else f"{split}/"
        self._write({f"{shown}{name}": value for name, value in measured.items()})
        if self.trainer.state.fn == "fit":
            require_finite_loss(f"{split}/loss", measured["loss"], self)
        values = {f"{split}/{name}": value for name, value in measured.items()}
        self.log_dict(values | {f"{split}/images": images}, logger=False)

    def _write(self, values: dict[str, float]) -> None:
        """Write to the loggers, at the number of optimizer steps taken.

        Not by `self.log`: Lightning's logging interval knows nothing of an epoch's last batch, and it
        writes validation one step early.
        """
        for logger in self.trainer.loggers:
            logger.log_metrics(values | {"epoch": self.current_epoch}, step=self.global_step)


def _made(key: str, factory: Callable[..., Any], *arguments: Any) -> Any:
    """Call a factory whose options come from the configuration's group `key`."""
    try:
        return factory(*arguments)
    except InputError:
        raise
    except (TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
        raise InputError(f"{key}: {one_line(error)}") from error


def _generators(device: torch.device) -> list[torch.Generator]:
    """Those that networks draw from on this device: its own, and the CPU's."""
    found = [torch.default_generator]
    if device.type in ("cuda", "xpu"):
        generators = torch.get_device_module(device).default_generators
        found.append(generators[device.index or 0])
    elif device.type == "mps":
        found.append(torch.mps._get_default_mps_generator())
    return found


def _without_params(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}
