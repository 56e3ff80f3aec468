"""`scripts/compare.py`: rank runs."""

import os
from dataclasses import dataclass
from pathlib import Path

from project.config.command_options import option
from project.errors import InputError
from project.reporting.compare.table import render, write_csv
from project.runs.collect import compare
from project.runs.earlier_output import COMPARISON, PICTURE, refuse_foreign
from project.runtime.write_probe import refuse_unwritable_output

FORMATS = (".png", ".svg", ".pdf")
EXAMPLES = """\
examples:
  python scripts/compare.py                          all runs below outputs
  python scripts/compare.py outputs/sweep/2026-01-31_09-30-00 plot=sweep.png
  python scripts/compare.py sweep_a sweep_b by=test/acc csv=both.csv
"""


@dataclass
class Options:
    """Rank runs by the metric that they monitored.

    Runs that differ only in their seed (or data.fold) count as one point:
    mean ± sample standard deviation, and their number.
    """

    runs: list[str] = option(["outputs"], "sweeps, single runs, or folders above them; words without a key")
    by: str | None = option(None, "metric that ranks, such as test/acc; null: the monitored one")
    each: bool = option(False, "rank every run by itself, seeds apart")
    top: int = option(20, "rows of the table", least=1)
    csv: Path | None = option(None, "file to write with all rows and columns; with each=true a row a run")
    plot: Path | None = option(None, "figure to write of all points and their curves: .png, .svg or .pdf")


def main(options: Options) -> None:
    """Print the ranking, and write the files asked for.

    Raises:
        InputError: no runs, no such metric, or a file that cannot be written.
    """
    if options.plot and options.plot.suffix.lower() not in FORMATS:
        raise InputError(f"plot={options.plot}: unknown format; end the name in {', '.join(FORMATS)}")
    if options.csv and options.plot and os.path.realpath(options.csv) == os.path.realpath(options.plot):
        raise InputError(f"plot={options.plot}: the same file as csv; give another name")
    for key, file, kind in (("csv", options.csv, COMPARISON), ("plot", options.plot, PICTURE)):
        if file:
            refuse_unwritable_output(f"{key}={file}", file)
            refuse_foreign(f"{key}={file}", file, kind)
    comparison = compare(options.runs, options.by, each=options.each)
    print(render(comparison, options.top))
    if options.csv:
        print(f"{write_csv(comparison, options.csv)} rows in {options.csv}")
    if options.plot:
        from project.reporting.compare.plot import draw  # imports matplotlib, which takes a second or two

        draw(comparison, options.plot)
        print(f"drawn in {options.plot}")
