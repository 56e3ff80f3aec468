"""Which classes the tables of ranges and words speak of: those of this project, of torch and of Lightning.

A class that somebody adds, be it in this package, may give the same name another meaning: `width` as a
factor, say. It judges its values itself.
"""

from collections.abc import Mapping
from typing import Any

from project.checks.groups import DICTS

JUDGE_THEMSELVES = ("model", "augment", "optim", "scheduler", "loss", *DICTS)
"""Groups whose classes are often added. Data sets and trainers take what ours take."""

LIBRARIES = ("torch.", "torchvision.", "lightning.", "pytorch_lightning.")

OURS = frozenset(
    {
        *("project.callbacks.checkpoint.Checkpoint", "project.callbacks.early_stopping.EarlyStopping"),
        *("project.callbacks.ema.EMA", "project.callbacks.last.Last", "project.callbacks.rest.Rest"),
        *("project.callbacks.measurements.Measurements", "project.callbacks.story.Story"),
        *("project.callbacks.progress.Progress", "project.callbacks.pruning.Pruning"),
        *("project.callbacks.freezing.Freeze", "project.callbacks.overfitting.Overfit"),
        "project.callbacks.profiling.Profile",
        "project.datamodules.augmentation.Augmentation",
        *("project.loggers.csv.MetricsCSV", "project.loggers.tensorboard.TensorBoard"),
        *("project.modules.airbench.Airbench", "project.modules.cnn.BatchNormCNN", "project.modules.cnn.CNN"),
        *("project.modules.cnn.ConvNet", "project.modules.cnn.LeNet", "project.modules.losses.CrossEntropy"),
        *("project.modules.losses.OneHotMSE", "project.modules.mlp.MLP", "project.modules.muon.MuonSGD"),
        *("project.modules.optimizers.Muon", "project.modules.resnet.ResNet", "project.modules.rnn.RowLSTM"),
        *("project.modules.schedules.constant", "project.modules.schedules.cosine"),
        *("project.modules.schedules.exponential", "project.modules.schedules.linear"),
        *("project.modules.schedules.multistep", "project.modules.schedules.onecycle"),
        *("project.modules.schedules.plateau", "project.modules.schedules.step"),
        *("project.modules.schedules.warmup_cosine", "project.modules.vit.ViT"),
        "project.modules.torchvision_model.TorchvisionModel",
    }
)


def is_familiar(target: Any) -> bool:
    """Whether a class is one whose arguments the tables know."""
    return isinstance(target, str) and (target in OURS or target.startswith(LIBRARIES))


def is_judged(key: str, values: Mapping[str, Any]) -> bool:
    """Whether the name of a key says what its value may be.

    Args:
        key: dotted.
        values: of the configuration, by dotted key.
    """
    if key.partition(".")[0] not in JUDGE_THEMSELVES:
        return True
    target = values.get(f"{place_of(key)}._target_")
    return target is None or is_familiar(target)


def place_of(key: str) -> str:
    """Key of the object that a key belongs to: `optim`, or `callbacks.ema`."""
    parts = key.split(".")
    return ".".join(parts[: 2 if parts[0] in DICTS else 1])
