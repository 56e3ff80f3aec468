"""Hold the state of the command that this process runs, on both sides of Hydra."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class CommandState:
    """Facts about the command line that Hydra does not pass on.

    Args:
        shows_traceback: errors come with their traceback.
        resumed_run: a `project.config.resume.ResumedRun`, or None for a new run.
        resumed_sweep: a `project.config.resume.ResumedSweep`, or None for a new sweep.
        folder: where the command was given, if `hydra.job.chdir` left it; else None.
    """

    shows_traceback: bool = False
    resumed_run: Any = None
    resumed_sweep: Any = None
    folder: Path | None = None


command_state = CommandState()
