"""Habits of Lightning that users should not meet."""

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities.exceptions import SIGTERMException


@contextmanager
def raising_interrupts() -> Iterator[None]:
    """Undo that Lightning ends the process with code 1 after Ctrl-C, and with 0 after SIGTERM."""
    try:
        yield
    except SIGTERMException as error:
        raise SystemExit(128 + signal.SIGTERM) from error
    except SystemExit as error:
        raise KeyboardInterrupt from error


def silence_libraries() -> None:
    """Keep off the screen what Lightning tells every user at every start."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*is smaller than the logging interval.*",
        ".*LeafSpec.*",  # Lightning's own use of torch
        ".*across ranks is zero.*",  # there may be no validation images
        ".*your dataloader is not resumable.*",  # the data module keeps its place
        ".*`srun` command is available.*",  # a job of a sweep starts its ranks itself
        ".*sync_dist=True.*",  # our metrics are summed over the ranks before they are logged
    ):
        warnings.filterwarnings("ignore", message)
