"""Evaluate a trained run: `python scripts/evaluate.py run=last`; `--help` lists the keys."""

import gc

if __name__ == "__main__":
    gc.disable()  # until all is imported (project.imports.settle): importing is faster

    from project import stopping

    stopping.end_at_once()

from project import imports
from project.evaluation.members import find_networks
from project.evaluation.options import EXAMPLES, Options
from project.options import run_command
from project.runs.writable import refuse_unwritable_output


def main(options: Options) -> None:
    """Evaluate as the command line says."""
    if options.output is not None:
        refuse_unwritable_output(f"output={options.output}", options.output, folder=True)
    found = find_networks(options)  # what is wrong is told before torch is imported
    imports.defer()
    from project.evaluation.command import evaluate

    imports.settle()
    evaluate(options, found)


if __name__ == "__main__":
    run_command(main, Options, EXAMPLES)
