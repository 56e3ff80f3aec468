"""Evaluate a trained run: `python scripts/evaluate.py run=last`; `--help` lists the keys."""

if __name__ == "__main__":
    from project.runtime.process import begin_command

    begin_command()

from project.config.command_options import run_command
from project.inference.evaluate.options import EXAMPLES, Options, main

if __name__ == "__main__":
    run_command(main, Options, EXAMPLES)
