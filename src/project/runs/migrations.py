"""Renamed keys and classes in run folders of earlier versions, and their current names."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

RENAMED_KEYS: dict[str, str] = {
    "augment.crop_padding": "augment.random_crop_padding",
    "augment.erase": "augment.random_erasing_size",
    "augment.erase_probability": "augment.random_erasing_prob",
    "augment.flip": "augment.flip_prob",
    "augment.flip_mode": "augment.flip_schedule",
    "data.prepared": "data.image_cache",
    "paths.prepared": "paths.image_cache",
    "callbacks.freeze": "callbacks.freeze_backbone",
    "callbacks.measurements": "callbacks.training_stats",
    "callbacks.rest": "callbacks.freeze_finished_params",
    "callbacks.story": "callbacks.visuals",
    "callbacks.story.images": "callbacks.visuals.max_images",
    "callbacks.story.points": "callbacks.visuals.max_embeddings",
    "decay_norms_and_biases": "optim.weight_decay_norm_bias",
    "find": "tune",
    "layer_decay": "optim.layerwise_lr_decay",
    "model.hidden": "model.hidden_dim",
    "model=batchnorm_cnn": "model=cnn_batchnorm",
    "model=convnet": "model=cnn_5x5",
    "resume_anyway": "resume_force",
    "retry": "retry_failed",
    "test_views": "tta",
    "trainer.chunk": "trainer.batches_per_hook",
}
RENAMED_KEYS |= {
    f"data.{old}": f"data.{new}" for old, new in RENAMED_KEYS.items() if old.startswith("augment.")
}
"""New dotted keys by old ones, and new options by old ones, as in `model=cnn`."""

RENAMED_OPTIONS: Mapping[str, str] = {
    "batch": "batch_size",
    "calibration": "num_calibration_images",
    "gives": "output_type",
    "prune": "prune_fraction",
    "resamples": "num_resamples",
    "seconds": "benchmark_s",
    "threads": "num_threads",
    "top": "top_k",
    "views": "tta",
}
"""New options by old ones, of the commands after training."""

REMOVED_KEYS = ("callbacks.story.budget", "callbacks.story.least_s")
"""Keys of earlier versions without a replacement."""

RENAMED_CLASSES: dict[str, str] = {
    "project.callbacks.checkpoint.Checkpoint": "project.callbacks.checkpointing.BestCheckpoint",
    "project.callbacks.checkpointing.Checkpoint": "project.callbacks.checkpointing.BestCheckpoint",
    "project.callbacks.freeze_backbone.Freeze": "project.callbacks.freeze.FreezeBackbone",
    "project.callbacks.freeze_finished_params.Rest": "project.callbacks.freeze.FreezeFinishedParams",
    "project.callbacks.freezing.Freeze": "project.callbacks.freeze.FreezeBackbone",
    "project.callbacks.last.Last": "project.callbacks.checkpointing.LastCheckpoint",
    "project.callbacks.last_checkpoint.Last": "project.callbacks.checkpointing.LastCheckpoint",
    "project.callbacks.measurements.Measurements": "project.callbacks.training_stats.TrainingStats",
    "project.callbacks.overfit_batch.Overfit": "project.callbacks.overfit_batch.OverfitBatch",
    "project.callbacks.overfitting.Overfit": "project.callbacks.overfit_batch.OverfitBatch",
    "project.callbacks.profiler.Profile": "project.callbacks.profiler.StepProfiler",
    "project.callbacks.profiling.Profile": "project.callbacks.profiler.StepProfiler",
    "project.callbacks.rest.Rest": "project.callbacks.freeze.FreezeFinishedParams",
    "project.callbacks.story.Story": "project.callbacks.visuals.TestVisuals",
    "project.callbacks.training_stats.Measurements": "project.callbacks.training_stats.TrainingStats",
    "project.callbacks.pruning.Pruning": "project.callbacks.trial_pruning.TrialPruning",
    "project.callbacks.trial_pruning.Pruning": "project.callbacks.trial_pruning.TrialPruning",
    "project.callbacks.visuals.Story": "project.callbacks.visuals.TestVisuals",
    "project.datamodules.augmentation.Augmentation": "project.datamodules.loading.augmentation.Augmentation",
    "project.modules.cnn.BatchNormCNN": "project.modules.networks.cnn.CNNBatchNorm",
    "project.modules.cnn.CNN": "project.modules.networks.cnn.CNN3x3",
    "project.modules.cnn.ConvNet": "project.modules.networks.cnn.CNN5x5",
    "project.modules.muon.MuonSGD": "project.modules.optim.muon.MuonSGD",
    "project.modules.networks.cnn.BatchNormCNN": "project.modules.networks.cnn.CNNBatchNorm",
    "project.modules.networks.cnn.CNN": "project.modules.networks.cnn.CNN3x3",
    "project.modules.networks.cnn.ConvNet": "project.modules.networks.cnn.CNN5x5",
    "project.modules.optim.parameter_groups.Muon": "project.modules.optim.muon.Muon",
    "project.modules.optimizers.Muon": "project.modules.optim.muon.Muon",
    "project.preflight.Preflight": "project.config.preflight.Preflight",
    "project.runs.log_file.LogFile": "project.runtime.atomic_files.LogFile",
}
_SCHEDULES = (
    *("constant", "cosine", "exponential", "linear", "multistep", "onecycle", "plateau", "step"),
    "warmup_cosine",
)
_NETWORKS = (
    *("airbench.Airbench", "cnn.LeNet", "mlp.MLP", "resnet.ResNet", "rnn.RowLSTM"),
    *("torchvision_model.TorchvisionModel", "vit.ViT"),
)
RENAMED_CLASSES |= {
    f"project.modules.schedules.{n}": f"project.modules.optim.schedules.{n}" for n in _SCHEDULES
}
RENAMED_CLASSES |= {f"project.modules.{name}": f"project.modules.networks.{name}" for name in _NETWORKS}
"""Current dotted paths of classes and functions by their old ones in `_target_`."""

OWN_PACKAGES = ("project.", "torch.optim.")
"""Packages whose arguments are renamed; classes of others may have arguments of the old names."""


def new_name(key: str) -> str:
    """Return the current name of a dotted key or an option `group=name`; empty if unchanged."""
    for old in sorted(RENAMED_KEYS, key=len, reverse=True):
        if key == old or key.startswith(f"{old}."):
            return RENAMED_KEYS[old] + key[len(old) :]
    return ""


def old_keys(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the renamed keys in a configuration, the most specific first."""
    for old in sorted(RENAMED_KEYS, key=len, reverse=True):
        parent, name = _parent_of(config, old)
        if parent is not None and name in parent and _is_own(parent):
            yield old


def migrate(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration of an earlier version, resolved or not, with current names."""
    migrated: dict[str, Any] = _rename_values(config)
    for removed in REMOVED_KEYS:
        parent, name = _parent_of(migrated, removed)
        if parent is not None:
            parent.pop(name, None)
    for old in list(old_keys(migrated)):
        parent, name = _parent_of(migrated, old)
        assert parent is not None
        value = parent.pop(name)
        *groups, new = RENAMED_KEYS[old].split(".")
        target = migrated
        for group in groups:
            target = target.setdefault(group, {})
        if isinstance(value, dict) and isinstance(target.get(new), dict):
            target[new] = value | target[new]
        else:
            target.setdefault(new, value)
    if "model" in migrated and "task" not in migrated:
        migrated["task"] = _classification(migrated)
    return migrated


def _classification(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the task of a run from before there were tasks."""
    parts = {"network": "model", "loss": "loss", "optimizer": "optim", "scheduler": "scheduler"}
    options = {name: config[name] for name in ("compile", "channels_last", "tta") if name in config}
    optim = config.get("optim", {})
    options |= {
        name: optim[name] for name in ("layerwise_lr_decay", "weight_decay_norm_bias") if name in optim
    }
    target = {"_target_": "project.modules.classifier.ImageClassifier"}
    return target | {name: f"${{{group}}}" for name, group in parts.items() if group in config} | options


def _parent_of(config: Mapping[str, Any], key: str) -> tuple[Any, str]:
    *groups, name = key.split(".")
    node: Any = config
    for group in groups:
        node = node.get(group) if isinstance(node, Mapping) else None
    return (node if isinstance(node, Mapping) else None), name


def _is_own(group: Mapping[str, Any]) -> bool:
    return str(group.get("_target_", OWN_PACKAGES[0])).startswith(OWN_PACKAGES)


def _rename_values(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _rename_values(child, str(name)) for name, child in value.items()}
    if isinstance(value, list):
        return [_rename_values(child) for child in value]
    if key == "_target_":
        return RENAMED_CLASSES.get(value, value)
    if isinstance(value, str) and "${" in value:
        return re.sub(r"(?<=\$\{)[\w.]+(?=\})", lambda found: new_name(found[0]) or found[0], value)
    return value
