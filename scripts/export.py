"""Write a run's network as a file: `python scripts/export.py run=last format=onnx variants=all`."""

if __name__ == "__main__":
    from project.runtime.process import begin_command

    begin_command()

from project.config.command_options import run_command
from project.inference.export.options import EXAMPLES, Options, main

if __name__ == "__main__":
    run_command(main, Options, EXAMPLES)
