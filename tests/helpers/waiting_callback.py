"""Callback that holds a training until a test lets it go on."""

import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

CONFIG_TARGETS = ("Waiting",)
"""Classes that configurations may name, see `project.config.allowed_targets`."""


class Waiting(Callback):
    """Waits after the second epoch for the file `release` in the folder PROJECT_TEST."""

    def on_train_epoch_start(self, trainer: Any, *args: Any) -> None:
        while trainer.current_epoch == 2 and not (Path(os.environ["PROJECT_TEST"]) / "release").exists():
            time.sleep(0.1)
