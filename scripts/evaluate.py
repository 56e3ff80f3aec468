"""Evaluate a trained run: `python scripts/evaluate.py run=last`; `--help` lists the keys."""

import gc

if __name__ == "__main__":
    gc.disable()  # until all is imported (project.imports.settle): importing is faster

from project import imports
from project.evaluation.options import EXAMPLES, Options
from project.options import run_command


def main(options: Options) -> None:
    """Evaluate as the command line says."""
    imports.defer()
    from project.evaluation.command import evaluate  # imports torch: only now, when the words have been read

    imports.settle()
    evaluate(options)


if __name__ == "__main__":
    run_command(main, Options, EXAMPLES)
