"""Predict image files with a trained run: `python scripts/predict.py run=last input=photos`."""

import gc

if __name__ == "__main__":
    gc.disable()  # until all is imported (project.runtime.lazy_imports.freeze_gc): importing is faster

    from project.runtime import signals

    signals.exit_on_signal()

from project.config.command_options import run_command
from project.inference.predict.command import predict_files
from project.inference.predict.options import EXAMPLES, Options

if __name__ == "__main__":
    run_command(predict_files, Options, EXAMPLES)
