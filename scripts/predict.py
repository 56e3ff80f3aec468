"""Predict image files with a trained run: `python scripts/predict.py run=last input=photos`."""

if __name__ == "__main__":
    from project.runtime.process import begin_command

    begin_command()

from project.config.command_options import run_command
from project.inference.predict.command import EXAMPLES, Options, predict_files

if __name__ == "__main__":
    run_command(predict_files, Options, EXAMPLES)
