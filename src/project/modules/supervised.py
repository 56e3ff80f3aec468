"""Base LightningModule: a network trained by a mean loss, with metrics, optimizer and schedule."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

import lightning as L
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from project.errors import InputError, one_line
from project.modules.batch_checks import (
    explain_forward_error,
    require_mean_reduction,
    require_scalar_loss,
)
from project.modules.gradients import MeanGradient, mean_gradient
from project.modules.losses import FitsToTargets, total_weight_of
from project.modules.memory_format import refuse_unsafe_convolutions
from project.modules.metrics import LossAndAccuracy, NamedMetrics, is_unrelated, log_metrics
from project.modules.nan_guard import require_finite_loss
from project.modules.optim.parameter_groups import ParameterGroups, parameter_groups, scale_learning_rates
from project.modules.optim.sam import SharpnessAware
from project.modules.optim.schedules import PLATEAU_STATE_KEYS, Schedule, constant, fast_forward
from project.modules.optim.training_length import TrainingLength, accumulated_batches
from project.runtime.bounds import Range
from project.runtime.lightning_private import trainer_of


class SupervisedModule(L.LightningModule):
    """Network trained by a mean loss over batches of inputs and targets.

    Subclasses may override `unpack`, `compute`, `compute_loss`, `require_outputs`, `build_metrics`,
    `metric_inputs`, `read_metrics`, `prediction_columns` and `target_columns`. Logs `train/…` and `train/lr`
    every `trainer.log_every_n_steps` steps and at the end of each epoch. Logs `val/…` and `test/…` once per
    evaluation, and `val/best_…` for the best checkpoint.

    Args:
        network: maps inputs (B, …) to outputs.
        loss: maps outputs and targets to a scalar, the mean over the batch.
        optimizer: builds the optimizer from parameter groups.
        scheduler: builds the schedule from the optimizer and the training length (see `optim.schedules`).
        metrics: additional metrics by name; each split has its own copy.
        train_metrics: measure `metrics` on the training split too, over each epoch, and not only on the
            validation and test splits.
        weight_decay_norm_bias: if True, apply weight decay to normalization parameters and biases too.
        layerwise_lr_decay: learning rate of each block relative to the next block, above 0 to 1 [1].
        compile: compile the network with `torch.compile`, on a GPU with one CUDA graph per batch shape;
            checkpoint keys are those of the uncompiled network.
        channels_last: store images and convolution weights in channels-last memory format.

    Raises:
        InputError: the loss does not average over the batch; in the first training step, the network rejects
            the inputs, or the loss rejects the outputs.
    """

    METRICS: ClassVar[dict[str, str]] = {"loss": "min"}
    """Metrics of each split, with `max` or `min` for the better direction."""

    supports_batched_hooks = True

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        optimizer: Callable[[ParameterGroups], Optimizer] = torch.optim.Adam,
        scheduler: Callable[[Optimizer, TrainingLength], Schedule] = constant,
        metrics: Mapping[str, Metric] | None = None,
        *,
        train_metrics: bool = False,
        weight_decay_norm_bias: bool = True,
        layerwise_lr_decay: Annotated[float, Range(above=0, high=1)] = 1.0,
        compile: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=self.memory_format)
        self.compile_network = compile
        self._uses_cuda_graphs = False
        self.loss = loss
        require_mean_reduction(self.loss)
        self.optimizer_factory = optimizer
        self.scheduler_factory = scheduler
        self.weight_decay_norm_bias = weight_decay_norm_bias
        self.layerwise_lr_decay = layerwise_lr_decay
        self.total_weight = total_weight_of(self.loss)
        has_accuracy = "acc" in self.METRICS
        self.train_metrics = LossAndAccuracy(self.total_weight, has_accuracy=has_accuracy)
        self.eval_metrics = LossAndAccuracy(self.total_weight, has_accuracy=has_accuracy)
        self._configured_metrics = dict(metrics or {})
        self._measures_training = train_metrics
        self.more_train_metrics = NamedMetrics({})  # filled by `setup`
        self.more_val_metrics = NamedMetrics({})
        self.more_test_metrics = NamedMetrics({})
        self.interval_metrics: dict[str, float] = {}  # means of the last logging interval
        self._epoch_sums = {"loss": 0.0, "acc": 0.0, "images": 0.0, "weight": 0.0}
        self._logged_step = 0
        self._mean_gradient: MeanGradient | None = None
        self._sharpness: SharpnessAware | None = None  # the optimizer, if each step has two passes
        # The checks of the first batch do the work of `compute`, and would miss that of a subclass.
        self._is_checked = type(self).compute is not SupervisedModule.compute
        self._group_options: list[dict[str, Any]] = []
        self._restored: dict[str, Any] = {}
        self._restored_schedules: list[dict[str, Any]] | None = None

    def build_metrics(self) -> dict[str, Metric]:
        """Return the task's metrics by name, in addition to the configured ones."""
        return {}

    def setup(self, stage: str) -> None:
        if not self.more_val_metrics.names:
            metrics = {**self.build_metrics(), **self._configured_metrics}
            self.more_train_metrics = NamedMetrics(metrics if self._measures_training else {})
            self.more_val_metrics, self.more_test_metrics = NamedMetrics(metrics), NamedMetrics(metrics)
        if stage == "fit":
            if self.memory_format == torch.channels_last:
                refuse_unsafe_convolutions(self.network, self.trainer.strategy.root_device)
            for part in (self, self.loss):
                if isinstance(part, FitsToTargets) and part.needs_targets:
                    part.fit_targets(_training_targets(self.trainer).to(self.device))
        if self.compile_network:  # not in the constructor: the device is unknown there
            self.compile_network = False
            self._uses_cuda_graphs = self.trainer.strategy.root_device.type == "cuda"
            options = {"mode": "reduce-overhead", "dynamic": False} if self._uses_cuda_graphs else {}
            self.network.compile(**options)

    def forward(self, inputs: Tensor) -> Any:
        """Map inputs (B, …) to the outputs of the network."""
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=self.memory_format)
        outputs = self.network(inputs)
        # The next replay of a CUDA graph overwrites its outputs.
        return outputs.clone() if self._uses_cuda_graphs and isinstance(outputs, Tensor) else outputs

    def unpack(self, batch: Any) -> tuple[Tensor, Any]:
        """Return the inputs (B, …) and the targets of a batch."""
        inputs, targets = batch
        return inputs, targets

    def compute(self, batch: Any) -> tuple[Tensor, Any, Any]:
        """Return the mean loss of a batch, the outputs of the network, and the targets."""
        inputs, targets = self.unpack(batch)
        outputs = self.forward(inputs)
        return self.compute_loss(inputs, outputs, targets), outputs, targets

    def compute_loss(self, inputs: Tensor, outputs: Any, targets: Any) -> Tensor:
        """Return the mean loss of a batch; subclasses may add terms, also such that need the inputs."""
        loss: Tensor = self.loss(outputs, targets)
        return loss

    def metric_inputs(self, outputs: Any, targets: Any) -> tuple[Any, Any]:
        """Return the predictions and targets for the metrics."""
        return outputs, targets

    def prediction_columns(self, outputs: Any, names: Sequence[str]) -> dict[str, list[Any]]:
        """Return what the outputs for B inputs predict, as columns of a table: B cells by column name.

        Args:
            outputs: result of `forward`.
            names: names of the classes, labels or values.

        Returns:
            An empty dictionary for outputs that do not fit into cells, such as images.
        """
        return {}

    def target_columns(self, targets: Any, names: Sequence[str]) -> dict[str, list[Any]]:
        """Return the targets of B inputs as columns, like `prediction_columns`."""
        return {}

    def metric_names(self, split: str) -> list[str]:
        """Return the metrics of a split without its name; a metric of several values has one name here."""
        if split == "train" and not self._measures_training:
            return [name for name in self.METRICS if name in self._epoch_sums]
        return [*self.METRICS, *self._configured_metrics]

    def require_outputs(self, outputs: Any, targets: Any) -> None:
        """Raise an `InputError` if the outputs for the first batch do not fit its targets."""

    def configure_optimizers(self) -> Any:
        initialize_from_images(self.network, self.trainer)
        optimizer = self._make_optimizer()
        self._group_options = [
            {name: value for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]
        self.trainer.fit_loop.setup_data()  # counts the batches, which the schedule needs
        schedule = _call_factory(
            "scheduler", self.scheduler_factory, optimizer, TrainingLength.of(self.trainer)
        )
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def check_optimizer(self, length: TrainingLength) -> None:
        """Build and discard an optimizer and a schedule, to check their options before training.

        Raises:
            InputError: the optimizer or the schedule rejects its options.
        """
        _call_factory("scheduler", self.scheduler_factory, self._make_optimizer(), length)

    def check_metrics(self, outputs: Any, targets: Any, fixes: Mapping[str, str]) -> None:
        """Measure copies of the configured metrics on outputs and targets (see `NamedMetrics.try_batch`).

        Raises:
            InputError: a metric rejects the batch, or computes a value that cannot be logged.
        """
        NamedMetrics(self._configured_metrics).try_batch(*self.metric_inputs(outputs, targets), fixes)

    def _make_optimizer(self) -> Optimizer:
        groups = parameter_groups(
            self.network,
            weight_decay_norm_bias=self.weight_decay_norm_bias,
            layerwise_lr_decay=self.layerwise_lr_decay,
        )
        optimizer: Optimizer = _call_factory("optim", self.optimizer_factory, groups)
        scale_learning_rates(optimizer)
        return optimizer

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, outputs, targets = self.compute(batch) if self._is_checked else self._first_compute(batch)
        if self._sharpness is None or not self._sharpness.is_second_pass:
            self.train_metrics.append(loss, outputs, targets)
            if self._measures_training and self.more_train_metrics.names:
                detached = apply_to_collection(outputs, Tensor, Tensor.detach)
                self.more_train_metrics.update(*self.metric_inputs(detached, targets))
        if self._mean_gradient is not None:
            self._mean_gradient.share(loss, targets, batch_idx)
        return loss

    def _first_compute(self, batch: Any) -> tuple[Tensor, Any, Any]:
        """Return the result of `compute` for the first batch, with an `InputError` for wrong shapes."""
        inputs, targets = self.unpack(batch)
        try:
            outputs = self.forward(inputs)
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            if is_unrelated(error) or self.network._compiled_call_impl is not None:
                raise
            raise InputError(explain_forward_error(self.network, inputs, one_line(error))) from error
        self.require_outputs(outputs, targets)
        try:
            loss = self.compute_loss(inputs, outputs, targets)
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            if is_unrelated(error):
                raise
            raise InputError(f"loss: {one_line(error)}; choose another loss, or fix this one") from error
        require_scalar_loss(loss)
        self._is_checked = True
        return loss, outputs, targets

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.on_optimizer_step(self.trainer, self)

    def on_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log if a logging interval or an epoch ends; called after every batch."""
        step = trainer.global_step
        interval_ends = step % trainer.log_every_n_steps == 0 and step > self._logged_step  # type: ignore[attr-defined]
        if interval_ends or (trainer.is_last_batch and not self.train_metrics.is_empty):
            self._log_interval()
        if trainer.is_last_batch:
            self._log_epoch_means()

    def on_train_epoch_start(self) -> None:
        # A GradientAccumulationScheduler may change the number of accumulated batches each epoch.
        self._mean_gradient = mean_gradient(self.trainer, self.total_weight)
        self._epoch_sums = dict.fromkeys(self._epoch_sums, 0.0)

    def on_train_epoch_end(self) -> None:
        if not self.train_metrics.is_empty:  # max_steps or max_time ended the epoch early
            self._log_interval()
        self._log_epoch_means()

    def _log_interval(self) -> None:
        since, self._logged_step = self._logged_step, self.global_step
        means = self.train_metrics.read()
        images, weight = means.pop("images"), means.pop("weight")
        sums = {"loss": means["loss"] * weight, "acc": means.get("acc", 0.0) * images}
        for name, value in (sums | {"images": images, "weight": weight}).items():
            self._epoch_sums[name] += value
        self.interval_metrics = {f"train/{name}": value for name, value in means.items()}
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        log_metrics(self, self.interval_metrics | {"train/lr": optimizer.param_groups[0]["lr"]})
        require_finite_loss("train/loss", means["loss"], self, since=since)

    def _log_epoch_means(self) -> None:
        sums = self._epoch_sums
        counts = {"loss": sums["weight"] or 1, "acc": sums["images"] or 1}
        log_metrics(
            self, {}, {f"train/{name}": sums[name] / counts[name] for name in self.METRICS if name in sums}
        )
        if not self.more_train_metrics.is_empty:
            means = {f"train/{name}": value for name, value in self.more_train_metrics.read().items()}
            log_metrics(self, means, means)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        """Update the metrics with one batch, and return the outputs of the network for callbacks."""
        loss, outputs, targets = self.compute(batch)
        self._evaluate("val", loss, outputs, targets)
        return outputs

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        """Update the metrics with one batch, and return the outputs of the network for callbacks."""
        loss, outputs, targets = self.compute(batch)
        self._evaluate("test", loss, outputs, targets)
        return outputs

    def _evaluate(self, split: str, loss: Tensor, outputs: Any, targets: Any) -> None:
        """Update the metrics of a split with one batch."""
        self.eval_metrics.append(loss, outputs, targets)
        more = self.more_test_metrics if split == "test" else self.more_val_metrics
        if more.names:
            more.update(*self.metric_inputs(outputs, targets))

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def _log_evaluation(self, split: str) -> None:
        means = self.eval_metrics.read()
        images, _ = means.pop("images"), means.pop("weight")
        means |= self.read_metrics(split)
        # The final validation of the best weights is not a point of the curve val/….
        prefix = f"{split}/best_" if self.trainer.state.fn == "validate" else f"{split}/"
        results = {f"{split}/{name}": value for name, value in means.items()} | {f"{split}/images": images}
        log_metrics(self, {f"{prefix}{name}": value for name, value in means.items()}, results)
        if self.trainer.state.fn == "fit":
            require_finite_loss(f"{split}/loss", means["loss"], self)

    def read_metrics(self, split: str) -> dict[str, float]:
        """Return the additional metrics of a split after its last batch, and reset them."""
        return (self.more_test_metrics if split == "test" else self.more_val_metrics).read()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.trainer.state.fn != "fit":
            return
        checkpoint["training"] = {
            "epoch_sums": dict(self._epoch_sums),
            "logged_step": self._logged_step,
            "metrics": self.train_metrics.export(),  # collective: called on all ranks
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trainer = trainer_of(self)
        if trainer is None:
            return
        if trainer.precision == "64-true":
            self.double()  # Lightning converts only after loading the weights in single precision
        if trainer.state.fn == "fit":
            # Lightning would restore the schedule's previous length and options.
            self._restored_schedules, checkpoint["lr_schedulers"] = checkpoint.get("lr_schedulers", []), []
            self._restored = checkpoint.get("training", {})

    def on_train_start(self) -> None:
        self._logged_step = self.trainer.global_step
        optimizer = self.optimizers(use_pl_optimizer=False)
        self._sharpness = optimizer if isinstance(optimizer, SharpnessAware) else None
        epoch = TrainingLength.of(self.trainer).taken["epoch"]
        # Lightning's callback sets the value only at the start of an epoch; a run may resume within one.
        self.trainer.accumulate_grad_batches = accumulated_batches(self.trainer, epoch)
        self._mean_gradient = mean_gradient(self.trainer, self.total_weight)
        if self._restored_schedules is not None:
            self._restore_schedule()
        if self._restored:
            self._restore_metrics()

    def _restore_schedule(self) -> None:
        """Apply the configured options to the optimizer's groups, and fast-forward a new schedule."""
        saved, self._restored_schedules = self._restored_schedules or [], None
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        saved_rates = [(group["lr"], group.get("initial_lr")) for group in optimizer.param_groups]
        for group, options in zip(optimizer.param_groups, self._group_options, strict=True):
            group.update(options)
        length = TrainingLength.of(self.trainer)
        schedule = _call_factory("scheduler", self.scheduler_factory, optimizer, length)
        (config,) = self.trainer.lr_scheduler_configs
        config.scheduler = schedule["scheduler"]
        if not config.reduce_on_plateau:
            fast_forward(schedule, length)
        elif saved and saved[0].get("mode") == schedule["scheduler"].mode:
            schedule["scheduler"].load_state_dict({name: saved[0][name] for name in PLATEAU_STATE_KEYS})
            for group, (rate, initial) in zip(optimizer.param_groups, saved_rates, strict=True):
                group["lr"] = rate * (group["lr"] / initial if initial else 1.0)

    def _restore_metrics(self) -> None:
        restored, self._restored = self._restored, {}
        sums = restored["epoch_sums"]
        self._epoch_sums = {"weight": sums["images"], **sums}  # older checkpoints have no "weight"
        self._logged_step = restored["logged_step"]
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        self.train_metrics.restore(restored["metrics"], rank, world_size)
        self.on_optimizer_step(self.trainer, self)  # the checkpoint may precede the logging of its step

    def on_fit_end(self) -> None:
        self._restored_schedules, self._restored = None, {}  # unused if no training step remained


@runtime_checkable
class InitializedFromImages(Protocol):
    """Network that computes some of its weights from training images before training."""

    def initialize(self, images: Tensor) -> None:
        """Set the weights from normalized, unaugmented training images (N, C, H, W)."""
        ...


def initialize_from_images(network: nn.Module, trainer: L.Trainer) -> None:
    """Initialize an `InitializedFromImages` network from a sample of training images.

    A resumed run skips the initialization. All ranks use the same images. Call this function after the
    trainer knows its checkpoint, and before anything copies the weights.

    Raises:
        InputError: the data module has no method `training_sample`.
    """
    if not isinstance(network, InitializedFromImages) or trainer.ckpt_path is not None:
        return
    sample = getattr(trainer.datamodule, "training_sample", None)  # type: ignore[attr-defined]
    if sample is None:
        raise InputError(
            f"model: {type(network).__name__} computes weights from training images; train it on an "
            "ImageDataModule, or a data module with a method training_sample()"
        )
    network.initialize(sample())


def _training_targets(trainer: L.Trainer) -> Tensor:
    """Return the targets of the training split.

    Raises:
        InputError: the data module has no method `targets`.
    """
    targets = getattr(trainer.datamodule, "targets", None)  # type: ignore[attr-defined]
    if targets is None:
        raise InputError(
            "data: the training targets are unknown before training (expected a SupervisedDataModule, or a "
            "data module with a method targets(split)); give the values that follow from them"
        )
    found: Tensor = targets("train")
    return found


def _call_factory(key: str, factory: Callable[..., Any], *arguments: Any) -> Any:
    """Call a factory, and report its errors as an `InputError` of the config group `key`."""
    try:
        return factory(*arguments)
    except InputError:
        raise
    except (TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
        raise InputError(f"{key}: {one_line(error)}") from error
