"""The commands that make a run again, go on with it, and look at it."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from project.reporting.html.html import Markup, element, join
from project.runtime.secrets import REDACTED, redact_text

TRAIN = "python scripts/train.py"
NOT_AGAIN = ("resume=", "ckpt_path=", "hydra.run.dir=", "hydra.sweep.dir=")
"""Overrides that belong to the folder that is there, and not to a new one."""

COMMIT = re.compile(r"[0-9a-f]{7,64}")


def command(overrides: Sequence[str], *, multirun: bool = False) -> str:
    """The command line of a run or a sweep, as a shell takes it."""
    kept = [redact_text(word) for word in overrides if not word.startswith(NOT_AGAIN)]
    return " ".join([TRAIN, *(["-m"] if multirun else []), *map(shlex.quote, kept)])


def reproduce(
    overrides: Sequence[str], git: Any, folder: Path, *, multirun: bool = False, done: bool = True
) -> Markup:
    """How to make a run or a sweep again.

    Args:
        overrides: of its command line.
        git: the code's state, as records have it.
        folder: its own.
        multirun: whether it is a sweep.
        done: whether there is nothing left to go on with.
    """
    known = git if isinstance(git, dict) else {}
    commit = known.get("commit")
    sound = isinstance(commit, str) and COMMIT.fullmatch(commit)  # it is to be pasted into a shell
    checkout = [f"git checkout {commit}"] if sound else []
    place = shlex.quote(str(folder))
    what = "sweep" if multirun else "run"
    notes = []
    if not checkout:
        notes.append("The commit of the code is not on record.")
    if known.get("changed"):
        notes.append(
            "Tracked files had been changed since this commit: it alone may not give the same result."
        )
    if any(REDACTED in redact_text(word) for word in overrides):
        notes.append(f"{REDACTED} stands for a secret; give it as '${{oc.env:NAME}}'.")
    if any(word.startswith("ckpt_path=") for word in overrides):
        notes.append("It began with a checkpoint of another run, which its configuration names (ckpt_path).")
    parts = [
        element("h3", f"Make the same {what} again"),
        _commands([*checkout, "uv sync", f"uv run {command(overrides, multirun=multirun)}"]),
        [element("p", note, class_="warning") for note in notes],
    ]
    if not done:
        parts += [element("h3", "Go on where it stopped"), _commands([f"{TRAIN} resume={place}"])]
    elif not multirun:
        onward = f"{TRAIN} resume={place} trainer.max_epochs=…"
        parts += [element("h3", "Train on"), _commands([onward])]
    look = [f"python scripts/evaluate.py run={place}", f"tensorboard --logdir {place}"]
    look += [f"python scripts/compare.py {place}"] if multirun else []
    return join(parts, element("h3", "Look closer"), _commands(look))


def _commands(lines: Sequence[str]) -> Markup:
    return element("pre", element("code", "\n".join(lines)), class_="commands")
