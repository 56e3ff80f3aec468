"""Callback that kills the process once, within the second epoch."""

import os
import signal
from pathlib import Path
from typing import Any

from lightning import Callback

CONFIG_TARGETS = ("KillOnce",)
MARK = "was_killed"
"""File in the working folder that stops a second kill."""


class KillOnce(Callback):
    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (1, 1) and not Path(MARK).exists():
            Path(MARK).touch()
            os.kill(os.getpid(), signal.SIGKILL)
