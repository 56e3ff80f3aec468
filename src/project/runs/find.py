"""Trained runs: found by their folder, as the last one, or as the best of a sweep."""

import sys
from pathlib import Path

from project.errors import InputError
from project.runs.collect import Comparison, best_line, compare
from project.runs.results import Run, read_runs
from project.runs.run_folder import RunFolder, latest_run
from project.runs.sweep_folder import find_sweep
from project.runtime.files import refuse_url

LAST = "last"


def find_trained(wanted: str | Path, outputs: str | Path = "outputs", *, key: str = "run") -> RunFolder:
    """Return the run that a command works on; report on standard error which one of a sweep that is.

    Args:
        wanted: folder of a run, or of a sweep (the best run of its best point), or `last`.
        outputs: folder below which `last` is looked for.
        key: key of the command line, for messages.

    Raises:
        InputError: there is no such run.
    """
    folder = find_last(outputs, key=key) if str(wanted) == LAST else Path(wanted).expanduser()
    if line := refuse_url(key, str(wanted)):
        raise InputError(line)
    if find_sweep(folder) is not None:
        comparison = _compare(folder, key)
        print(f"{key}={wanted}: {best_line(comparison)}", file=sys.stderr)
        return RunFolder(comparison.best_first[0].folder)
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
    """Return the folder of the run or sweep that was started last; for a sweep's job, that of its sweep.

    Raises:
        InputError: there is none below `outputs`.
    """
    last = latest_run(Path(outputs).expanduser())
    if last is None:
        raise InputError(f"{key}=last: no run below {outputs}; train one, or say where with outputs=FOLDER")
    around = last.path.parent
    return around if find_sweep(around) is not None else last.path


def find_best(folder: Path, *, key: str = "run") -> list[Run]:
    """Return the runs of a sweep with a result, see `Comparison.best_first`.

    Raises:
        InputError: there is none.
    """
    return _compare(folder, key).best_first


def _compare(folder: Path, key: str) -> Comparison:
    try:
        comparison = compare([folder], guess=True)
    except InputError:
        comparison = None
    if comparison is None or not comparison.best_first:
        runs, _ = read_runs([folder])
        states = ", ".join(sorted({run.state for run in runs}))
        raise InputError(f"{key}={folder}: none of the sweep's {len(runs)} runs has a result ({states})")
    return comparison
