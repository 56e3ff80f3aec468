"""What may stand in the script by which SLURM starts a job: settings of sbatch, and few kinds of shell lines.

A configuration may come from somebody else, and must not bring commands of its own.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from project.errors import InputError

WORD = r"[\w./:+@%,=~-]+"
SETUP = re.compile(
    rf"(module|ml)( {WORD})+|conda activate {WORD}|source {WORD}|ulimit( {WORD})+|export (?P<name>\w+)={WORD}"
)
"""Lines before a job: no expansions, no redirections, one command each."""
LOADS_CODE = re.compile(r"(LD_|DYLD_|PYTHON|BASH|HYDRA_|TORCH_FORCE|PATH$|ENV$|IFS$)")
"""How names of variables begin by which other code is run, or checks are switched off."""

NAME = re.compile(r"[A-Za-z][\w-]*")
NOT_TAKEN = frozenset({"wrap", "export", "export_file"})


def refuse_settings(key: str, settings: Mapping[str, Any]) -> None:
    """Check settings of sbatch, each of which is a line of the script.

    Args:
        key: below which they stand, for messages.
        settings: by name.

    Raises:
        InputError: one would be more than a setting.
    """
    for name, value in settings.items():
        if not NAME.fullmatch(str(name)) or str(name).replace("-", "_") in NOT_TAKEN:
            raise InputError(f"{key}.{name!r}: no setting that may be given here; see `man sbatch` for names")
        if any(not character.isprintable() for character in str(value)):
            raise InputError(f"{key}.{name}={value!r}: holds a line break or the like; give one line of text")


def refuse_setup(lines: Sequence[str]) -> None:
    """Check the lines of shell before a job.

    Raises:
        InputError: one is more than it may be.
    """
    for line in lines:
        found = SETUP.fullmatch(str(line))
        if found is None or (found["name"] and LOADS_CODE.match(found["name"])):
            raise InputError(
                f"hydra.launcher.setup: {line!r} may not be run; lines are `module load …`, `conda activate "
                "…`, `source FILE`, `ulimit …` and `export NAME=value`; put more into a file of your own, "
                "and source that"
            )
