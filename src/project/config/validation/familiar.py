"""Which classes the tables of ranges and words speak of: those of this project, of torch and of Lightning.

A class that somebody adds, be it in this package, may give the same name another meaning: `width` as a
factor, say. It judges its values itself.
"""

from collections.abc import Mapping
from typing import Any

from project.config.validation.groups import DICTS

JUDGE_THEMSELVES = ("model", "augment", "optim", "scheduler", "loss", *DICTS)
"""Groups whose classes are often added. Data sets and trainers take what ours take."""

LIBRARIES = ("torch.", "torchvision.", "lightning.", "pytorch_lightning.")

OURS = frozenset(
    {
        *("project.callbacks.checkpointing.Checkpoint", "project.callbacks.early_stopping.EarlyStopping"),
        *(
            "project.callbacks.ema.EMA",
            "project.callbacks.last_checkpoint.Last",
            "project.callbacks.freeze_finished_params.Rest",
        ),
        *("project.callbacks.training_stats.Measurements", "project.callbacks.visuals.Story"),
        *("project.callbacks.progress.Progress", "project.callbacks.pruning.Pruning"),
        *("project.callbacks.freeze_backbone.Freeze", "project.callbacks.overfit_batch.Overfit"),
        "project.callbacks.profiler.Profile",
        "project.datamodules.loading.augmentation.Augmentation",
        *("project.loggers.csv.MetricsCSV", "project.loggers.tensorboard.TensorBoard"),
        *(
            "project.modules.networks.airbench.Airbench",
            "project.modules.networks.cnn.BatchNormCNN",
            "project.modules.networks.cnn.CNN",
        ),
        *(
            "project.modules.networks.cnn.ConvNet",
            "project.modules.networks.cnn.LeNet",
            "project.modules.losses.CrossEntropy",
        ),
        *(
            "project.modules.losses.OneHotMSE",
            "project.modules.networks.mlp.MLP",
            "project.modules.optim.muon.MuonSGD",
        ),
        *(
            "project.modules.optim.parameter_groups.Muon",
            "project.modules.networks.resnet.ResNet",
            "project.modules.networks.rnn.RowLSTM",
        ),
        *("project.modules.optim.schedules.constant", "project.modules.optim.schedules.cosine"),
        *("project.modules.optim.schedules.exponential", "project.modules.optim.schedules.linear"),
        *("project.modules.optim.schedules.multistep", "project.modules.optim.schedules.onecycle"),
        *("project.modules.optim.schedules.plateau", "project.modules.optim.schedules.step"),
        *("project.modules.optim.schedules.warmup_cosine", "project.modules.networks.vit.ViT"),
        "project.modules.networks.torchvision_model.TorchvisionModel",
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
