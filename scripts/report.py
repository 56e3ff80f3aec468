"""Write an HTML page about a run or a sweep: `python scripts/report.py outputs/sweep/2026-01-31_09-30-00`."""

if __name__ == "__main__":
    from project.runtime.process import begin_command

    begin_command()

from project.config.command_options import run_command
from project.reporting.html.command import EXAMPLES, Options, main

if __name__ == "__main__":
    run_command(main, Options, EXAMPLES)
