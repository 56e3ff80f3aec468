"""From a folder to a file with its page."""

from collections.abc import Sequence
from pathlib import Path

from project.config.allowed_targets import refuse_address
from project.errors import InputError
from project.reporting.html.run_page import run_page
from project.reporting.html.sweep_page import sweep_page
from project.runs.earlier_output import PAGE, refuse_foreign
from project.runs.find import LAST, find_last
from project.runs.sweep_folder import find_sweep
from project.runtime.files import reason_of
from project.runtime.write_probe import refuse_unwritable_output, whole_file

NAME = "report.html"
REMEDY = "give output=FILE in a folder that you may write to"
ENDINGS = (".html", ".htm")


def write_report(wanted: str, output: Path | None, compare: Sequence[str] | None, outputs: Path) -> Path:
    """Write the page of a run, of a sweep or of the runs below a folder.

    Args:
        wanted: its folder, or `last`.
        output: file to write, or a folder for it; None for the run's own.
        compare: other folders with runs; None for the runs beside this one.
        outputs: folder in which `last` is looked for.

    Returns:
        The file.

    Raises:
        InputError: there is no such folder, no run in it, or the file cannot be written.
    """
    folder = _find(wanted, outputs)
    file = folder / NAME if output is None else output / NAME if output.is_dir() else output
    if file.suffix.lower() not in ENDINGS:
        raise InputError(f"output={output}: is no page; end the name in .html")
    refuse_unwritable_output(f"output={file}", file, remedy=REMEDY)
    refuse_foreign(f"output={file}", file, PAGE)
    tell = run_page if _is_run(folder) else sweep_page
    text = tell(folder, file.parent, compare)
    _write(file, text)
    return file


def _find(wanted: str, outputs: Path) -> Path:
    if line := refuse_address("run", wanted):
        raise InputError(line)
    folder = find_last(outputs) if wanted == LAST else Path(wanted)
    if not folder.is_dir():
        what = "a file; name its run's folder" if folder.is_file() else "no such folder"
        raise InputError(
            f"run={wanted}: {what}, such as outputs/cnn_digits_adam/2026-01-31_09-30-00, or last"
        )
    return folder


def _is_run(folder: Path) -> bool:
    files = ("status.json", "config.yaml", ".hydra/config.yaml")
    return find_sweep(folder) is None and any((folder / name).exists() for name in files)


def _write(file: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    try:
        with whole_file(file) as partial:
            partial.write_bytes(text.encode("utf-8", "replace"))
    except OSError as error:
        raise InputError(f"output={file}: cannot be written ({reason_of(error)}); {REMEDY}") from error
