"""`scripts/watch.py`: show a running sweep or run as a page that refreshes itself."""

from dataclasses import dataclass
from pathlib import Path

from project.config.command_options import option
from project.reporting.html.command import find_folder
from project.runs.comparison import LAST
from project.runtime import lazy_imports
from project.runtime.web_server import LOOPBACK, MAX_PORT

EXAMPLES = """\
examples:
  python scripts/watch.py                            the sweep or run started last
  python scripts/watch.py outputs/sweep/2026-01-31_09-30-00 open=true
  python scripts/watch.py outputs port=0             all runs below outputs
"""


@dataclass
class Options:
    """Show a sweep or run as a local page that refreshes itself.

    Only reads files: the sweep may run in another process or on another
    machine with the same file system. Ctrl-C ends the page, not the sweep.
    """

    run: str = option(LAST, "run folder, sweep folder, or a folder that contains runs; or last")
    outputs: Path = option(Path("outputs"), "folder to search for run=last")
    port: int = option(8764, "port of the page; 0: any free port", least=0, most=MAX_PORT)
    host: str = option(LOOPBACK, "address of the page; any but 127.0.0.1 requires a token")
    open: bool = option(False, "open the page in a browser")


def main(options: Options) -> None:
    """Serve the page until SIGTERM or Ctrl-C.

    Raises:
        InputError: the folder is missing, or the port is in use.
    """
    lazy_imports.freeze_gc()
    folder = find_folder(options.run, options.outputs)
    from project.reporting.runs.server import serve

    serve([folder], options.host, options.port, opened=options.open)
