"""Evaluate a trained run: `python scripts/evaluate.py run=last`; `--help` lists the keys."""

import gc

if __name__ == "__main__":
    gc.disable()  # until all is imported (project.runtime.lazy_imports.freeze_gc): importing is faster

    from project.runtime import signals

    signals.exit_on_signal()

from project.config.command_options import run_command
from project.inference.evaluate.options import EXAMPLES, Options, check_networks
from project.runtime import lazy_imports
from project.runtime.write_probe import refuse_unwritable_output


def main(options: Options) -> None:
    """Check the options without torch, then evaluate."""
    if options.output is not None:
        refuse_unwritable_output(f"output={options.output}", options.output, folder=True)
    found = check_networks(options)  # before torch is imported
    lazy_imports.defer_imports()
    from project.inference.evaluate.command import evaluate

    lazy_imports.freeze_gc()
    evaluate(options, found)


if __name__ == "__main__":
    run_command(main, Options, EXAMPLES)
