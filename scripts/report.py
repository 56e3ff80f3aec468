"""Tell a run or a sweep on one page: `python scripts/report.py outputs/sweep/2026-01-31_09-30-00`."""

import gc

if __name__ == "__main__":
    gc.disable()  # until all is imported (project.runtime.training_imports.settle): importing is faster

    from project.runtime import signals

    signals.end_at_once()

from project.config.command_options import run_command
from project.reporting.html.command import write_report
from project.reporting.html.options import EXAMPLES, Options
from project.runtime import training_imports


def main(options: Options) -> None:
    """Write the page, and say where it is."""
    training_imports.settle()
    file = write_report(options.run, options.output, options.compare, options.outputs)
    print(f"{file}  {file.stat().st_size / 1000:,.0f} kB")
    if options.open:
        import webbrowser

        webbrowser.open(file.absolute().as_uri())


if __name__ == "__main__":
    run_command(main, Options, EXAMPLES)
