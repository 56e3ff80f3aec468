"""Small training built from Python objects, without a configuration."""

from functools import partial
from pathlib import Path

import torch

from project.callbacks.run_record import RunRecord
from project.datamodules.synthetic import Synthetic
from project.modules.classifier import ImageClassifier
from project.modules.losses import CrossEntropy
from project.modules.networks.resnet import ResNet
from project.modules.optim import schedules
from project.training.trainer import Trainer


def make_module(**options) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(
        ResNet((1, 8, 8), 3, depth=8, width=4),
        CrossEntropy(3),
        partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        partial(schedules.cosine, interval="step"),
        **options,
    )


def make_data(**options) -> Synthetic:
    return Synthetic(
        input_shape=(1, 8, 8),
        num_classes=3,
        train_size=110,
        test_size=50,
        val_size=10,
        batch_size=16,
        **options,
    )


def make_trainer(folder: Path, callbacks=(), logger=False, **options) -> Trainer:
    settings = {"max_epochs": 2, "log_every_n_steps": 3, "enable_progress_bar": False} | options
    return Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[RunRecord({"seed": 1}), *callbacks],
        logger=logger,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )
