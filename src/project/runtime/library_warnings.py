"""Silence what libraries print at every start."""

import logging
import warnings


def silence_libraries() -> None:
    """Hide what Lightning tells every user at every start, and tracebacks of logging itself."""
    logging.raiseExceptions = False  # a full disk would print a traceback for each line
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
        ".*requested to overfit.*",  # the order is that of the first epoch then
        ".*callbacks used to create the checkpoint.*",  # resumed runs show what changed themselves
        ".*sync_dist=True.*",  # our metrics are summed over the ranks before they are logged
    ):
        warnings.filterwarnings("ignore", message)
