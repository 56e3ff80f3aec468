"""Keys of `scripts/report.py`."""

from dataclasses import dataclass
from pathlib import Path

from project.config.command_options import option
from project.runs.find import LAST

EXAMPLES = """\
examples:
  python scripts/report.py run=last
  python scripts/report.py outputs/sweep/2026-01-31_09-30-00 output=sweep.html
  python scripts/report.py run=last compare=outputs/mnist_mlp,outputs/mnist_cnn
"""


@dataclass
class Options:
    """Write one HTML page about a run or a sweep. It needs no other file and no network."""

    run: str = option(LAST, "folder of a run, of a sweep or above some runs; or last")
    output: Path | None = option(None, "file to write; null: report.html in that folder")
    compare: list[str] | None = option(None, "other folders with runs; null: the runs beside this one")
    outputs: Path = option(Path("outputs"), "folder in which run=last looks")
    open: bool = option(False, "show the page in a browser")
