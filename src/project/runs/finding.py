"""Runs that are to be looked at after training: by folder, the last one, the best of a sweep. No torch."""

import math
from pathlib import Path

from project.errors import InputError
from project.runs.folder import RunFolder
from project.runs.results import Run, read_runs
from project.sweeps.folder import find_sweep
from project.targets import refuse_address

LAST = "last"
DEBUG = "debug"
"""The folder below the outputs in which debug presets keep their trials."""


def find_trained(wanted: str | Path, outputs: str | Path = "outputs", *, key: str = "run") -> RunFolder:
    """Find the run that a command is to work on.

    Args:
        wanted: a run's folder; a sweep's, which stands for its best run; `last`, the run or sweep that was
            started last.
        outputs: below which `last` is looked for.
        key: of the command line, for messages.

    Raises:
        InputError: there is no such run.
    """
    folder = find_last(outputs, key=key) if str(wanted) == LAST else Path(wanted).expanduser()
    if line := refuse_address(key, str(wanted)):
        raise InputError(line)
    if find_sweep(folder) is not None:
        return RunFolder(best_of_sweep(folder, key=key).folder)
    run = RunFolder(folder)
    if not folder.is_dir():
        what = "that is a file" if folder.is_file() else "no such folder"
        raise InputError(f"{key}={wanted}: {what}; give the folder of a run or of a sweep, or last")
    if not run.config_file.exists():
        inside = sorted(file.parent for file in folder.glob("**/config.yaml") if file.parent.name != ".hydra")
        hint = f"name one below it, such as {inside[-1]}" if inside else "give a folder that train.py made"
        raise InputError(f"{key}={wanted}: no run folder (config.yaml is missing); {hint}")
    return run


def find_last(outputs: str | Path, *, key: str = "run") -> Path:
    """The folder of the run or the sweep that was started last; for a sweep's job, that of its sweep.

    Trials count for nothing: those of `debug=…`, which lie below `outputs/debug`, and what only looked for
    a value (`find=lr`).

    Raises:
        InputError: there is none below `outputs`.
    """
    above = Path(outputs).expanduser()
    found: list[tuple[str, Path]] = []
    for file in above.glob("**/status.json"):
        run = RunFolder(file.parent)
        if _is_trial(run.path.relative_to(above)) or not run.config_file.exists():
            continue
        status = run.read_status()
        if not status.get("find"):
            found.append((status.get("started", ""), run.path))
    if not found:
        hint = "; trials of debug=… are looked at by their folder" if (above / DEBUG).is_dir() else ""
        raise InputError(
            f"{key}=last: no run below {outputs}; train one, or say where with outputs=FOLDER{hint}"
        )
    _, last = max(found, key=lambda entry: entry[0])
    return last.parent if find_sweep(last.parent) is not None else last


def _is_trial(place: Path) -> bool:
    """Whether a folder below the outputs is of a debug preset: `debug/NAME/TIME`, where a run that is called
    debug lies in `debug/TIME`.
    """
    return len(place.parts) > 2 and place.parts[0] == DEBUG


def best_of_sweep(folder: Path, *, key: str = "run") -> Run:
    """The run of a sweep that did best by the metric that it watched.

    Raises:
        InputError: none is done.
    """
    return ranked(folder, key=key)[0]


def ranked(folder: Path, *, key: str = "run") -> list[Run]:
    """The runs of a sweep that are done, best first by the metric that they watched.

    Raises:
        InputError: there is none.
    """
    runs, _ = read_runs([folder])
    measured = [run for run in runs if run.done and math.isfinite(run.metrics.get(run.monitor, math.nan))]
    if not measured:
        states = ", ".join(sorted({run.state for run in runs}))
        raise InputError(f"{key}={folder}: none of the sweep's {len(runs)} runs has a result ({states})")

    def merit(run: Run) -> float:
        value = run.metrics[run.monitor]
        return value if run.mode == "max" else -value

    return sorted(measured, key=merit, reverse=True)
