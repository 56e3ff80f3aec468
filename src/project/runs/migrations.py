"""Names of keys and classes in run folders of earlier versions, and the names that replaced them."""

from collections.abc import Mapping

RENAMED_KEYS: Mapping[str, str] = {}
"""Old key to new key, both dotted, as they stand in a configuration."""

RENAMED_CLASSES: Mapping[str, str] = {
    "project.callbacks.checkpoint.Checkpoint": "project.callbacks.checkpointing.Checkpoint",
    "project.callbacks.freezing.Freeze": "project.callbacks.freeze_backbone.Freeze",
    "project.callbacks.last.Last": "project.callbacks.last_checkpoint.Last",
    "project.callbacks.measurements.Measurements": "project.callbacks.training_stats.Measurements",
    "project.callbacks.overfitting.Overfit": "project.callbacks.overfit_batch.Overfit",
    "project.callbacks.profiling.Profile": "project.callbacks.profiler.Profile",
    "project.callbacks.rest.Rest": "project.callbacks.freeze_finished_params.Rest",
    "project.callbacks.story.Story": "project.callbacks.visuals.Story",
    "project.datamodules.augmentation.Augmentation": "project.datamodules.loading.augmentation.Augmentation",
    "project.modules.airbench.Airbench": "project.modules.networks.airbench.Airbench",
    "project.modules.cnn.BatchNormCNN": "project.modules.networks.cnn.BatchNormCNN",
    "project.modules.cnn.CNN": "project.modules.networks.cnn.CNN",
    "project.modules.cnn.ConvNet": "project.modules.networks.cnn.ConvNet",
    "project.modules.cnn.LeNet": "project.modules.networks.cnn.LeNet",
    "project.modules.mlp.MLP": "project.modules.networks.mlp.MLP",
    "project.modules.muon.MuonSGD": "project.modules.optim.muon.MuonSGD",
    "project.modules.optimizers.Muon": "project.modules.optim.parameter_groups.Muon",
    "project.modules.resnet.ResNet": "project.modules.networks.resnet.ResNet",
    "project.modules.rnn.RowLSTM": "project.modules.networks.rnn.RowLSTM",
    "project.modules.schedules.constant": "project.modules.optim.schedules.constant",
    "project.modules.schedules.cosine": "project.modules.optim.schedules.cosine",
    "project.modules.schedules.exponential": "project.modules.optim.schedules.exponential",
    "project.modules.schedules.linear": "project.modules.optim.schedules.linear",
    "project.modules.schedules.multistep": "project.modules.optim.schedules.multistep",
    "project.modules.schedules.onecycle": "project.modules.optim.schedules.onecycle",
    "project.modules.schedules.plateau": "project.modules.optim.schedules.plateau",
    "project.modules.schedules.step": "project.modules.optim.schedules.step",
    "project.modules.schedules.warmup_cosine": "project.modules.optim.schedules.warmup_cosine",
    "project.modules.torchvision_model.TorchvisionModel": "project.modules.networks.torchvision_model.TorchvisionModel",  # noqa: E501
    "project.modules.vit.ViT": "project.modules.networks.vit.ViT",
    "project.preflight.Preflight": "project.config.preflight.Preflight",
}
"""Dotted path of a class or function that a `_target_` may name, to its path today."""
