"""Commands of the project: `project-train`, `python -m project train` and `scripts/train.py` are the same.

Each function prepares the process before its imports, so that a signal during them ends it with one line.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from project.runtime.process import begin_command

if TYPE_CHECKING:
    from omegaconf import DictConfig


def train_run(cfg: "DictConfig") -> float | None:
    """Run one job with its composed configuration."""
    from project.runtime.console import LOADING, waiting

    with waiting(LOADING):  # only now, when the configuration has been checked
        from project.train import train  # imports torch

    return train(cfg)


def train() -> None:
    """Train one run, or with -m many: `project-train model=cnn optim=adam`."""
    begin_command()
    from project.config import cli
    from project.config.config_files import conf_folder

    cli.run(train_run, conf_folder(), "train")


def evaluate() -> None:
    """Evaluate a trained run: `project-evaluate run=last`; `--help` lists the keys."""
    begin_command()
    from project.config.command_options import run_command
    from project.inference.evaluate.options import EXAMPLES, Options, main

    run_command(main, Options, EXAMPLES)


def predict() -> None:
    """Predict image files with a trained run: `project-predict run=last input=photos`."""
    begin_command()
    from project.config.command_options import run_command
    from project.inference.predict.command import EXAMPLES, Options, predict_files

    run_command(predict_files, Options, EXAMPLES)


def serve() -> None:
    """Answer requests with a run's network, and show a page to draw on: `project-serve run=last`."""
    begin_command()
    from project.config.command_options import run_command
    from project.inference.serve.options import EXAMPLES, Options, main

    run_command(main, Options, EXAMPLES)


def explain() -> None:
    """Explain predictions by saliency maps and nearest images: `project-explain run=last input=photos`."""
    begin_command()
    from project.config.command_options import run_command
    from project.inference.explain.options import EXAMPLES, Options, main

    run_command(main, Options, EXAMPLES)


def export() -> None:
    """Write a run's network as a file: `project-export run=last format=onnx variants=all`."""
    begin_command()
    from project.config.command_options import run_command
    from project.inference.export.options import EXAMPLES, Options, main

    run_command(main, Options, EXAMPLES)


def report() -> None:
    """Write an HTML page about a run or a sweep: `project-report outputs/sweep/2026-01-31_09-30-00`."""
    begin_command()
    from project.config.command_options import run_command
    from project.reporting.html.command import EXAMPLES, Options, main

    run_command(main, Options, EXAMPLES)


def compare() -> None:
    """Rank runs: `project-compare outputs/sweep/2026-01-31_09-30-00`."""
    begin_command()
    from project.config.command_options import run_command
    from project.reporting.compare import EXAMPLES, Options, main

    run_command(main, Options, EXAMPLES)


def new() -> None:
    """Write a repository of your own: `project-new wind_forecast`."""
    begin_command()
    from project.config.command_options import run_command
    from project.new_repository import EXAMPLES, Options, main

    run_command(main, Options, EXAMPLES)


def replay() -> None:
    """Find the layer with the first NaN of a run that stopped with it: `project-replay run=last`."""
    begin_command()
    from project.config.command_options import run_command
    from project.inference.replay.options import EXAMPLES, Options, main

    run_command(main, Options, EXAMPLES)


def runs() -> None:
    """List, filter, tag and export runs: `project-runs state=done sort=-val/acc`."""
    begin_command()
    from project.config.command_options import run_command
    from project.reporting.runs.command import EXAMPLES, Options, main

    run_command(main, Options, EXAMPLES)


def watch() -> None:
    """Show a running sweep or run as a page that refreshes itself: `project-watch last`."""
    begin_command()
    from project.config.command_options import run_command
    from project.reporting.runs.watch import EXAMPLES, Options, main

    run_command(main, Options, EXAMPLES)


def data() -> None:
    """Look at a data set: `project-data data=image_folder data.path=photos`."""
    begin_command()
    from project.config.command_options import run_command
    from project.reporting.dataset.options import EXAMPLES, Options, main

    run_command(main, Options, EXAMPLES)


COMMANDS = {
    command.__name__: command
    for command in (
        *(train, evaluate, predict, explain, serve, export, report, compare, new, replay),
        *(runs, watch, data),
    )
}
"""Functions by the word of `python -m project WORD`."""


def main() -> None:
    """Run the command that the first word names: `python -m project train model=cnn`."""
    word = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if word in COMMANDS:
        sys.argv[:2] = [str(Path(sys.argv[0]).with_name(f"{word}.py"))]  # for `as_called`
        COMMANDS[word]()
    elif word in ("-h", "--help"):
        docs = {name: (command.__doc__ or "").splitlines()[0] for name, command in COMMANDS.items()}
        lines = (f"  {name:<10}{doc.partition(': `')[0].rstrip('.')}" for name, doc in docs.items())
        print("usage: python -m project COMMAND ...", "", *lines, sep="\n")
    else:
        from project.runtime.text import did_you_mean

        print(f"error: {word}: no such command; {did_you_mean(word, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
