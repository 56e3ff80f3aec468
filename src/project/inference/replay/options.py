"""Options of `scripts/replay.py`. Does not import torch."""

from dataclasses import dataclass
from pathlib import Path

from project.config.command_options import option
from project.errors import InputError
from project.inference.options import Accelerator
from project.inference.run_config import read_config
from project.runs.comparison import LAST, find_trained
from project.runs.run_folder import RunFolder
from project.runtime import lazy_imports
from project.runtime.console import LOADING, waiting

EXAMPLES = """examples:
  python scripts/replay.py run=last
  python scripts/replay.py run=outputs/mlp_digits_adam/2026-01-31_09-30-00"""

REPORT = "report.json"
"""File in the folder `nan` of a run that stopped with a NaN or infinite value."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Repeat the training of a run that stopped with NaN, and name the first layer
    whose output is not finite.

    Training continues from the run's last checkpoint, on one device, until a layer,
    gradient or weight is NaN or infinite. The folder `nan` of the run then holds the
    batch of that step and the weights before it.
    """

    run: str = option(LAST, "run folder, or last")
    outputs: Path = option(Path("outputs"), "folder to search for run=last")
    accelerator: Accelerator | None = option(None, "device; null: as in the run")


def main(options: Options) -> int:
    """Check the options without torch, then repeat the training; return 1 if everything stayed finite."""
    run = check_run(options)
    lazy_imports.defer_imports()
    with waiting(LOADING):
        from project.inference.replay.command import replay  # imports torch

    lazy_imports.freeze_gc()
    return replay(run, options.accelerator)


def check_run(options: Options) -> RunFolder:
    """Return the run, which must have stopped with a NaN or infinite value."""
    run = find_trained(options.run, options.outputs)
    read_config(run)
    if not (run.path / "nan" / REPORT).is_file():
        raise InputError(
            f"run={run.shown}: nan/{REPORT} is missing (expected a run that stopped with a NaN or infinite "
            "value); name such a run"
        )
    return run
