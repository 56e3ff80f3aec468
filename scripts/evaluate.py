"""Evaluate a trained run: `python scripts/evaluate.py run=last`; `--help` lists the keys."""

import gc

if __name__ == "__main__":
    gc.disable()  # until all is imported (project.runtime.training_imports.settle): importing is faster

    from project.runtime import signals

    signals.end_at_once()

from project.config.command_options import run_command
from project.inference.evaluate.options import EXAMPLES, Options, check_networks
from project.runtime import training_imports
from project.runtime.write_probe import refuse_unwritable_output


def main(options: Options) -> None:
    """Evaluate as the command line says."""
    if options.output is not None:
        refuse_unwritable_output(f"output={options.output}", options.output, folder=True)
    found = check_networks(options)  # before torch is imported
    training_imports.defer()
    from project.inference.evaluate.command import evaluate

    training_imports.settle()
    evaluate(options, found)


if __name__ == "__main__":
    run_command(main, Options, EXAMPLES)
