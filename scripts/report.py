"""Write an HTML page about a run or a sweep: `python scripts/report.py outputs/sweep/2026-01-31_09-30-00`."""

import gc

if __name__ == "__main__":
    gc.disable()  # until all is imported (project.runtime.lazy_imports.freeze_gc): importing is faster

    from project.runtime import signals

    signals.exit_on_signal()

from project.config.command_options import run_command
from project.reporting.html.command import EXAMPLES, Options, main
from project.runtime import lazy_imports


def run(options: Options) -> None:
    """Write the page."""
    lazy_imports.freeze_gc()
    main(options)


if __name__ == "__main__":
    run_command(run, Options, EXAMPLES)
