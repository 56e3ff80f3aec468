"""Tell a run or a sweep on one page: `python scripts/report.py outputs/sweep/2026-01-31_09-30-00`."""

import gc

if __name__ == "__main__":
    gc.disable()  # until all is imported (project.imports.settle): importing is faster

from dataclasses import dataclass
from pathlib import Path

from project import imports
from project.options import option, run_command
from project.report.writing import write_report

EXAMPLES = """\
examples:
  python scripts/report.py run=last
  python scripts/report.py outputs/sweep/2026-01-31_09-30-00 output=sweep.html
  python scripts/report.py run=last compare=outputs/mnist_mlp,outputs/mnist_cnn
"""


@dataclass
class Options:
    """Write one HTML page about a run or a sweep. It needs no other file and no network."""

    run: str = option(help="folder of a run, of a sweep or above some runs; or last")
    output: Path | None = option(None, "file to write; null: report.html in that folder")
    compare: list[str] | None = option(None, "other folders with runs; null: the runs beside this one")
    outputs: Path = option(Path("outputs"), "folder in which run=last looks")
    open: bool = option(False, "show the page in a browser")


def main(options: Options) -> None:
    """Write the page, and say where it is."""
    imports.settle()
    file = write_report(options.run, options.output, options.compare, options.outputs)
    print(f"{file}  {file.stat().st_size / 1000:,.0f} kB")
    if options.open:
        import webbrowser

        webbrowser.open(file.absolute().as_uri())


if __name__ == "__main__":
    run_command(main, Options, EXAMPLES)
