"""Rank runs: `python scripts/compare.py outputs/sweep/2026-01-31_09-30-00`."""

import gc

if __name__ == "__main__":
    gc.disable()  # until all is imported (project.runtime.training_imports.settle): importing is faster

    from project.runtime import signals

    signals.end_at_once()

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from project.config import cli
from project.errors import InputError
from project.reporting.compare.spreadsheet import write_csv
from project.runs.collect import compare
from project.runs.earlier_output import COMPARISON, PICTURE, refuse_foreign
from project.runs.table import render
from project.runtime import training_imports
from project.runtime.streams import accept_all_text
from project.runtime.write_probe import refuse_unwritable_output

PICTURES = (".png", ".svg", ".pdf")
DESCRIPTION = """\
Rank runs by the metric that they watched. Runs that differ only in their seed
(or data.fold) count as one: mean ± sample standard deviation, and their number.
"""
EXAMPLES = """\
examples:
  python scripts/compare.py                          all runs below outputs
  python scripts/compare.py outputs/sweep/2026-01-31_09-30-00 --plot sweep.png
  python scripts/compare.py sweep_a sweep_b --by test/acc --csv both.csv
"""


class Parser(argparse.ArgumentParser):
    """Tells mistakes as all our commands do: in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise what ends the process.

        Raises:
            InputError: always.
        """
        raise InputError(f"{message}; --help lists the flags")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line.

    Raises:
        InputError: it is wrong.
    """
    parser = Parser(
        prog="compare.py",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("folders", nargs="*", default=["outputs"], metavar="FOLDER",
        help="sweeps, single runs, or anything above them (default: outputs)")  # fmt: skip
    add("--by", metavar="METRIC", help="rank by this metric, such as test/acc")
    add("--each", action="store_true", help="rank every run by itself, seeds apart")
    add("--top", type=_count, default=20, metavar="N", help="rows of the table (default: 20)")
    add("--csv", type=Path, metavar="FILE", help="write all rows and columns; with --each a row a run")
    add("--plot", type=_picture, metavar="FILE",
        help="draw all points and their learning curves: .png, .svg or .pdf")  # fmt: skip
    add(cli.TRACEBACK_FLAG, action="store_true", help="show where a mistake was found")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Compare runs as the command line says."""
    accept_all_text()
    cli.with_traceback = cli.TRACEBACK_FLAG in arguments
    args = parse(arguments)
    if args.csv and args.plot and os.path.realpath(args.csv) == os.path.realpath(args.plot):
        raise InputError(f"--plot {args.plot}: the file of --csv; give another name")
    for flag, file, kind in (("--csv", args.csv, COMPARISON), ("--plot", args.plot, PICTURE)):
        if file:
            refuse_unwritable_output(f"{flag} {file}", file)
            refuse_foreign(f"{flag} {file}", file, kind)
    training_imports.settle()
    comparison = compare(args.folders, args.by, each=args.each)
    print(render(comparison, args.top))
    if args.csv:
        print(f"{write_csv(comparison, args.csv)} rows in {args.csv}")
    if args.plot:
        from project.reporting.compare.plot import draw  # imports matplotlib, which takes a second or two

        draw(comparison, args.plot)
        print(f"drawn in {args.plot}")


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of rows; give 1 or more")
    return int(text)


def _picture(text: str) -> Path:
    if Path(text).suffix.lower() not in PICTURES:
        raise argparse.ArgumentTypeError(f"{text} is no picture; end the name in {', '.join(PICTURES)}")
    return Path(text)


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a traceback
    cli.end_with(lambda: main(sys.argv[1:]))
