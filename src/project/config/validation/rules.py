"""Tables: which numbers and words keys may hold, and which need another kind of look."""

import math
from collections.abc import Mapping
from typing import Any

ABOVE_0 = math.ulp(0.0)
BELOW_1 = math.nextafter(1.0, 0.0)

RANGES: Mapping[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "data.batch_size": (1, math.inf),
    "data.eval_batch_size": (1, math.inf),
    "data.val_size": (0, math.inf),
    "data.test_size": (ABOVE_0, math.inf),
    "data.folds": (2, math.inf),
    "data.fold": (0, math.inf),
    "data.split_seed": (0, 2**63 - 1),
    "data.num_classes": (2, math.inf),
    "data.num_workers": (0, 1024),
    "data.memory_budget_mb": (0, math.inf),
    "data.white_level": (ABOVE_0, math.inf),
    "data.noise": (0, math.inf),
    "data.train_size": (1, math.inf),
    "data.input_shape": (1, math.inf),
    "data.mean": (0, 1),
    "data.std": (ABOVE_0, math.inf),
    "augment.random_crop_padding": (0, math.inf),
    "augment.flip_prob": (0, 1),
    "augment.rotate": (0, 180),
    "augment.translate": (0, 1),
    "augment.scale": (0, 0.99),
    "augment.shear": (0, 89),
    "augment.random_erasing_size": (0, math.inf),
    "augment.random_erasing_prob": (0, 1),
    "augment.mixup": (0, math.inf),
    "augment.cutmix": (0, math.inf),
    "model.channels": (1, math.inf),
    "model.depth": (1, math.inf),
    "model.dim": (1, math.inf),
    "model.heads": (1, math.inf),
    "model.widths": (1, math.inf),
    "model.dropout": (0, 1),
    "model.hidden": (1, math.inf),
    "model.layers": (1, math.inf),
    "model.width": (1, math.inf),
    "model.patch_size": (1, math.inf),
    "model.kernel_size": (1, math.inf),
    "model.whitening_size": (1, math.inf),
    "model.norm_momentum": (0, 1),
    "model.mlp_ratio": (ABOVE_0, math.inf),
    "model.resize": (1, math.inf),
    "optim.lr": (ABOVE_0, 1000),
    "optim.momentum": (0, 1),
    "optim.weight_decay": (0, 1000),
    "optim.alpha": (0, 1),
    "optim.linear_lr": (ABOVE_0, 1000),
    "optim.bias_lr": (ABOVE_0, 1000),
    "optim.sgd_momentum": (0, 1),
    "optim.steps": (1, 100),
    "optim.betas": (0, BELOW_1),
    "loss.label_smoothing": (0, 1),
    "loss.class_weights": (0, math.inf),
    "scheduler.gamma": (ABOVE_0, math.inf),
    "scheduler.factor": (ABOVE_0, BELOW_1),
    "scheduler.patience": (0, math.inf),
    "scheduler.frequency": (1, math.inf),
    "scheduler.step_size": (1, math.inf),
    "scheduler.milestones": (ABOVE_0, math.inf),
    "scheduler.warmup": (0, 1),
    "scheduler.div_factor": (1, math.inf),
    "scheduler.final_div_factor": (1, math.inf),
    "scheduler.final_lr": (0, 1000),
    "scheduler.final_ratio": (0, 1),
    "trainer.max_epochs": (-1, math.inf),
    "trainer.max_steps": (-1, math.inf),
    "trainer.num_nodes": (1, math.inf),
    "trainer.gradient_clip_val": (0, math.inf),
    "trainer.accumulate_grad_batches": (1, math.inf),
    "trainer.check_val_every_n_epoch": (1, math.inf),
    "trainer.log_every_n_steps": (1, math.inf),
    "trainer.num_sanity_val_steps": (-1, math.inf),
    "trainer.batches_per_hook": (1, math.inf),
    "trainer.timeout_min": (ABOVE_0, math.inf),
    "callbacks.early_stopping.patience": (0, math.inf),
    "callbacks.last.every_epochs": (0, math.inf),
    "callbacks.last.every_steps": (0, math.inf),
    "callbacks.last.every_minutes": (0, math.inf),
    "callbacks.early_stopping.min_delta": (0, math.inf),
    "callbacks.ema.decay": (0, BELOW_1),
    "callbacks.freeze.epochs": (0, math.inf),
    "callbacks.profiler.wait": (0, math.inf),
    "callbacks.profiler.warmup": (0, 100),
    "callbacks.profiler.active": (1, 100),
    "callbacks.overfit.loss": (ABOVE_0, math.inf),
    "callbacks.progress.every_epochs": (1, math.inf),
    "layer_decay": (ABOVE_0, 1),
    "callbacks.story.budget": (0, 1),
    "callbacks.story.least_s": (0, math.inf),
    "callbacks.story.images": (0, 1000),
    "callbacks.story.points": (0, 10_000),
    "seeds": (1, math.inf),
    "folds": (2, math.inf),
}
"""Allowed values of numbers, lists of numbers included; a key that is not there is not checked. Infinity
itself is never allowed."""

MONITORS = ("val/acc", "val/loss", "train/acc", "train/loss")
"""Metrics that a run logs while it trains."""

CHOICES: Mapping[str, tuple[str, ...]] = {
    "mode": ("max", "min"),
    "tune": ("lr", "batch_size"),
    "model.activation": ("relu", "gelu", "silu", "tanh", "sigmoid", "identity"),
    "augment.crop_mode": ("zeros", "reflect"),
    "augment.flip_schedule": ("random", "alternating"),
    "test_views": ("none", "flip", "flip_translate"),
    "scheduler.interval": ("epoch", "step"),
    "scheduler.anneal": ("cos", "linear"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "trainer.strategy": (
        *("auto", "single_device", "single_xla", "fsdp", "fsdp_cpu_offload", "model_parallel"),
        *("xla", "xla_debug", "xla_fsdp", "deepspeed", "deepspeed_stage_1", "deepspeed_stage_2"),
        *("deepspeed_stage_3", "deepspeed_stage_1_offload", "deepspeed_stage_2_offload"),
        *("deepspeed_stage_3_offload", "deepspeed_stage_3_offload_nvme"),
        *(
            f"{start}{unused}"
            for start in ("ddp", "ddp_spawn", "ddp_fork", "ddp_notebook")
            for unused in ("", "_find_unused_parameters_true", "_find_unused_parameters_false")
        ),
    ),
    "trainer.precision": (
        *("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true", "transformer-engine"),
        *("transformer-engine-float16", "32", "16", "64", "bf16"),
    ),
}
"""Allowed words."""

INSTEAD_OF_NULL: Mapping[str, Any] = {
    "folds": 5,
    "tune": "lr",
    "trainer.batches_per_hook": 16,
    "trainer.gradient_clip_val": 1.0,
    "data.num_workers": 4,
    "data.mean": [0.5],
    "data.std": [0.5],
    "data.grayscale": True,
    "data.white_level": 65535.0,
    "loss.class_weights": [1.0, 2.0],
    "model.resize": 224,
    "model.weights": "DEFAULT",
    "paths.image_cache": "data/image_cache",
    "callbacks.overfit.loss": 0.05,
    **{f"callbacks.profiler.{name}": 5 for name in ("wait", "warmup", "active")},
}
"""What a value may be where the default is null."""

NULL_TOO = frozenset({"data.mean", "data.std", "optim.fused", "trainer.check_val_every_n_epoch"})
"""Keys that may be null although the default is not."""

FREE_TYPES = frozenset(
    {
        *("name", "trainer.devices", "trainer.precision", "trainer.strategy", "trainer.overfit_batches"),
        *("trainer.limit_train_batches", "trainer.limit_val_batches", "trainer.limit_test_batches"),
        *("trainer.deterministic", "trainer.val_check_interval", "trainer.max_time"),
        *("data.val_size", "data.test_size", "data.resize", "data.folds"),
    }
)
"""Keys whose values may have several types; some have a check of their own (`value_types`)."""

LENGTHS: Mapping[str, int] = {"optim.betas": 2, "data.input_shape": 3}
"""Lists that have so many entries, whatever else is chosen."""
