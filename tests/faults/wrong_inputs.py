"""Wrong inputs are refused in a few lines with the key, before torch is imported, and leave nothing behind.

Right inputs are accepted. `python tests/faults/wrong_inputs.py` tries all inputs in one process and prints
the outcomes as JSON; `--full` tries each wrong input in a new process.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import wrong_presets
from input_trials import (
    ACCEPTED,
    Composing,
    Outcome,
    accept,
    command,
    environment,
    fixtures,
    fork,
    has_torch,
    problem_of,
    temporary_folder,
    warm_up,
)

LONGEST_S = 2.0
"""Most CPU time for reporting a mistake without torch [s]; wall time depends on other processes."""
WHOLE_COMMANDS = ("syntax", "groups", "sweeps", "presets")
"""Sections of the inputs in which the command line itself is wrong."""
WHOLE_KEYS = ("resume=", "ckpt_path=", "retry_failed=")
HERE = Path(__file__).parent


def _lines_of(file: str) -> list[str]:
    lines = (HERE / file).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def read_bad() -> dict[str, list[tuple[str, ...]]]:
    """Read the bad inputs by section: arguments, and texts that the refusal must contain."""
    table: dict[str, list[tuple[str, ...]]] = {}
    for line in _lines_of("bad_inputs.txt"):
        if line.startswith("["):
            table[line.strip("[]")] = section = []
            continue
        arguments, _, says = line.partition("  =>  ")
        section.append((arguments, *(says.split("  |  ") if says else [])))
    return table


BAD = read_bad()
LATE = BAD.pop("late")
BAD["presets"] = wrong_presets.bad_inputs()
GOOD = _lines_of("good_inputs.txt") + [
    f"--config-dir FILES/own experiment={name} optim=adam" for name in wrong_presets.GOOD
]


def bad_outcomes(files: Path) -> Iterator[tuple[Outcome, tuple[str, ...]]]:
    """Try every bad input, if possible by its configuration alone."""
    composing = Composing()
    here = Path.cwd()
    with temporary_folder() as folder:
        os.chdir(folder)
        try:
            for section, cases in BAD.items():
                for arguments, *says in cases:
                    alone = section not in WHOLE_COMMANDS and not arguments.startswith(WHOLE_KEYS)
                    outcome = composing.try_one(arguments, files) if alone else None
                    outcome = outcome or fork(arguments, files, accept)
                    left = [path.name for path in folder.iterdir()]
                    yield outcome._replace(left=left) if left else outcome, tuple(says)
        finally:
            os.chdir(here)


def good_outcomes(files: Path) -> Iterator[Outcome]:
    """Try every good input: some as commands, the others by their configuration alone."""
    composing = Composing()
    for number, arguments in enumerate(GOOD):
        if number % 12 == 0 or arguments.startswith("-"):
            yield fork(arguments, files, accept)
        elif (refused := composing.try_one(arguments, files)) is not None:
            yield refused
        else:
            yield Outcome(arguments, 0, [], ACCEPTED, [], has_torch(), 0.0)


def in_one_process() -> dict[str, Any]:
    """Try all inputs in one process without torch, and return the outcomes."""
    done = subprocess.run(
        [sys.executable, __file__],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def full() -> str:
    """Try every bad input in a new process, and every good input up to the start of training.

    Returns:
        The numbers of inputs, and the durations of the bad ones.
    """
    problems: list[str] = []
    seconds: list[float] = []
    computed: list[float] = []
    with fixtures() as files:
        known = sorted(files.rglob("*"))
        for section, cases in BAD.items():
            for arguments, *says in cases:
                outcome = command(arguments, files)
                seconds.append(outcome.seconds)
                computed.append(outcome.cpu_seconds)
                if problem := problem_of(outcome, tuple(says)):
                    problems.append(f"{section}: {arguments}: {problem}")
        for arguments, *says in LATE:
            if problem := problem_of(command(arguments, files), tuple(says)):
                problems.append(f"late: {arguments}: {problem}")
        assert sorted(files.rglob("*")) == known, "the files that inputs name have changed"
    problems += [
        f"good: {outcome['arguments']}: {outcome['errors']}"
        for outcome in in_one_process()["good"]
        if outcome["code"] != 0
    ]
    figures = (
        f"{len(seconds)} bad inputs before torch, median {median(seconds):.2f} s, longest "
        f"{max(seconds):.2f} s (of the CPU {median(computed):.2f} and {max(computed):.2f} s); "
        f"{len(LATE)} after it; {len(GOOD)} good ones"
    )
    assert not problems, f"{figures}; {len(problems)} wrong:\n" + "\n".join(problems)
    assert max(computed) < LONGEST_S, figures
    return figures


def main() -> None:
    """Print the outcomes as JSON."""
    with fixtures() as files:
        warm_up()
        bad = [
            {**outcome._asdict(), "problem": problem_of(outcome, says)}
            for outcome, says in bad_outcomes(files)
        ]
        good = [outcome._asdict() for outcome in good_outcomes(files)]
        print(json.dumps({"bad": bad, "good": good}))


if __name__ == "__main__":
    print(full()) if "--full" in sys.argv else main()
