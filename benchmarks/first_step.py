"""Callback that prints the time after the first training batch and ends the process."""

import os
import sys
import time
from typing import Any

from lightning.pytorch.callbacks import Callback

CONFIG_TARGETS = ("FirstStep",)
"""Classes that configurations may name (see project.config.allowed_targets)."""


class FirstStep(Callback):
    """Prints the time of the first step on the machine's monotonic clock, which all processes share."""

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Print the time and end the process."""
        sys.stdout.write(f"\nfirst step at {time.monotonic()}\n")
        sys.stdout.flush()
        os._exit(0)
