"""Predict image files with a trained run: `python scripts/predict.py run=last input=photos`."""

import gc

if __name__ == "__main__":
    gc.disable()  # until all is imported (project.imports.settle): importing is faster

    from project import stopping

    stopping.end_at_once()

from project.options import run_command
from project.prediction.command import predict_files
from project.prediction.options import EXAMPLES, Options

if __name__ == "__main__":
    run_command(predict_files, Options, EXAMPLES)
