"""`scripts/report.py`: write an HTML report of a run or a sweep."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from project.config.command_options import option
from project.errors import InputError
from project.runs.comparison import LAST, find_last
from project.runs.results import read_runs
from project.runs.sweep_folder import find_sweep
from project.runtime import lazy_imports
from project.runtime.atomic_files import refuse_url
from project.runtime.output_files import output_file, refuse_foreign_file, refuse_unwritable_output
from project.runtime.text import strip_control
from project.runtime.web_pages import read_asset, read_style, script_hash, template_environment

NAME = "report.html"
PACKAGE = "project.reporting.html"
PAGE = re.compile(rb'<!doctype html>\n<html[^>]*><head><meta[^>]*><meta http-equiv="Content-Security-Policy"')
"""Start of a page that this command wrote."""
REMEDY = "set output=FILE in a writable folder"
ENDINGS = (".html", ".htm")
EXAMPLES = """\
examples:
  python scripts/report.py run=last
  python scripts/report.py outputs/sweep/2026-01-31_09-30-00 output=sweep.html
  python scripts/report.py run=last compare=outputs/mnist_mlp,outputs/mnist_cnn
"""


@dataclass
class Options:
    """Write a self-contained HTML report of a run or a sweep."""

    run: str = option(LAST, "run folder, sweep folder, or a folder that contains runs; or last")
    output: Path | None = option(None, "file to write; null: report.html in that folder")
    compare: list[str] | None = option(
        None, "folders of runs to compare with; null: the runs next to this one"
    )
    outputs: Path = option(Path("outputs"), "folder to search for run=last")
    open: bool = option(False, "open the page in a browser")


def main(options: Options) -> None:
    """Write the page, print its path and size, and open it in a browser for `open=true`."""
    lazy_imports.freeze_gc()
    file = write_report(options.run, options.output, options.compare, options.outputs)
    print(f"{file}  {file.stat().st_size / 1000:,.0f} kB")
    if options.open:
        import webbrowser

        webbrowser.open(file.absolute().as_uri())


def write_report(run: str, output: Path | None, compare: Sequence[str] | None, outputs: Path) -> Path:
    """Write the page of a run, of a sweep, or of all runs below a folder.

    Args:
        run: folder of runs, or `last`.
        output: file to write, or its folder; None: the folder of the run.
        compare: folders of runs to compare with; None: the runs next to this one.
        outputs: folder in which `last` is searched.

    Returns:
        The written file.

    Raises:
        InputError: the folder is missing or contains no run, or the file cannot be written.
    """
    folder = find_folder(run, outputs)
    file = folder / NAME if output is None else output / NAME if output.is_dir() else output
    if file.suffix.lower() not in ENDINGS:
        raise InputError(f"output={output}: not an HTML file; end the name in .html")
    refuse_unwritable_output(f"output={file}", file, remedy=REMEDY)
    refuse_foreign_file(f"output={file}", file, PAGE)
    for other in compare or ():
        try:
            read_runs([other])
        except InputError as error:
            raise InputError(f"compare={other}: {error}") from error
    write_page(file, render_page(folder, file.parent, compare))
    return file


def find_folder(wanted: str, outputs: Path) -> Path:
    """Return the folder that a user names.

    Args:
        wanted: folder of runs, or `last`.
        outputs: folder in which `last` is searched.

    Raises:
        InputError: there is no such folder.
    """
    if line := refuse_url("run", wanted):
        raise InputError(line)
    folder = find_last(outputs) if wanted == LAST else Path(wanted)
    if not folder.is_dir():
        problem = "a file; give the run folder" if folder.is_file() else "no such folder"
        example = "such as outputs/cnn_digits_adam/2026-01-31_09-30-00, or last"
        raise InputError(f"run={wanted}: {problem}, {example}")
    return folder


def render_page(folder: Path, page: Path, compare: Sequence[str] | None) -> str:
    """Render the page of a folder.

    Args:
        folder: run folder, sweep folder, or folder that contains runs.
        page: folder of the page; links are relative to it.
        compare: folders of runs to compare with; None: the runs next to this one.
    """
    from project.reporting.html.run_page import run_page  # like matplotlib, slow to import
    from project.reporting.html.sweep_page import sweep_page

    files = ("status.json", "config.yaml", ".hydra/config.yaml")
    is_run = find_sweep(folder) is None and any((folder / name).exists() for name in files)
    return render((run_page if is_run else sweep_page)(folder, page, compare))


def render(content: dict[str, Any]) -> str:
    """Render a page from the variables of its template; sections without content are omitted."""
    content = content | {"sections": [section for section in content["sections"] if section.content]}
    environment = template_environment(PACKAGE, finalize=_clean)
    environment.filters["identifier"] = _identifier
    script = read_asset(PACKAGE, "script.js")
    return environment.get_template("page.html").render(
        **content, style=read_style(), script=script, script_hash=script_hash(script)
    )


def _clean(value: Any) -> Any:
    """Convert None to an empty string, and remove control characters that HTML forbids."""
    if value is None:
        return ""
    return strip_control(value) if type(value) is str else value


def _identifier(title: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in title.lower())


def write_page(file: Path, text: str) -> None:
    """Write a page atomically.

    Raises:
        InputError: the file cannot be written.
    """
    with output_file(f"output={file}", file, REMEDY) as partial:
        partial.write_bytes(text.encode("utf-8", "replace"))
