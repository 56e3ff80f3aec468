"""Web server of the live page: `project-watch` and `project-runs page=true`."""

import json
import secrets
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from project.errors import InputError
from project.reporting.runs.curves import CurveReader
from project.reporting.runs.live import LiveRuns
from project.reporting.runs.logs import read_log
from project.reporting.runs.notes import read_notes, write_notes
from project.runs.run_folder import RunFolder
from project.runtime.extras import import_extra
from project.runtime.web_pages import read_asset, read_style, template_environment
from project.runtime.web_server import EXTRA, LOOPBACK, bind, serve_app, url_of

PACKAGE = "project.reporting.runs"
MAX_LINES = 300
"""Maximum number of runs whose curves are read."""
MAX_FILTER = 2000
"""Maximum length of a filter [characters]."""
MAX_BODY = 2**16
"""Maximum size of a request with notes [bytes]."""
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
TYPES = {"js": "text/javascript", "css": "text/css"}


def serve(
    folders: Sequence[Path],
    host: str,
    port: int,
    query: Mapping[str, str] | None = None,
    *,
    opened: bool = False,
    is_editable: bool = False,
) -> None:
    """Serve the page until SIGTERM or Ctrl-C, and print its URL.

    Args:
        folders: folders of runs.
        host: address to listen on; addresses other than 127.0.0.1 require a token.
        port: port; 0 for a free one.
        query: view that the page opens with, such as a filter.
        opened: open the page in a browser.
        is_editable: tags and notes can be changed.

    Raises:
        InputError: the port is in use, a folder is missing, or uvicorn is not installed.
    """
    app = make_app(folders, is_editable=is_editable)
    token = None if host == LOOPBACK else secrets.token_urlsafe(16)
    listener = bind(host, port)
    view = {name: text for name, text in (query or {}).items() if text} | ({"token": token} if token else {})
    address = f"{url_of(listener)}/{'?' if view else ''}{urlencode(view)}"
    print(f"{address}  (Ctrl-C ends it)", flush=True)
    if opened:
        webbrowser.open(address)
    serve_app(app, listener, key="page=true" if is_editable else "watch", token=token, shutdown_s=2)


def make_app(folders: Sequence[Path], *, is_editable: bool = False) -> Any:
    """Return the ASGI application of the page.

    Raises:
        InputError: a folder is missing, or Starlette is not installed.
    """
    key = "page=true" if is_editable else "watch"
    applications = import_extra("starlette.applications", key, EXTRA)
    route = import_extra("starlette.routing", key, EXTRA).Route
    answers = Answers(LiveRuns(folders), is_editable=is_editable)
    routes = [
        route("/", answers.page),
        route("/state", answers.state),
        route("/curves", answers.curves),
        route("/log", answers.log),
        route("/{name}", answers.asset),
    ]
    if is_editable:
        routes.insert(0, route("/notes", answers.notes, methods=["POST"]))
    return applications.Starlette(routes=routes)


class Answers:
    """Answers to the requests of the page.

    Args:
        live: runs of the page.
        is_editable: tags and notes can be changed.
    """

    def __init__(self, live: LiveRuns, *, is_editable: bool) -> None:
        from starlette.responses import Response

        self.live = live
        self.is_editable = is_editable
        self.reader = CurveReader()
        self.assets = _assets()
        self._response: Callable[..., Any] = Response
        self._server = secrets.token_hex(4)  # tells the page that the server is another one

    def page(self, request: Any) -> Any:
        """Return the page with its runs, so that it shows them without another request."""
        first = _to_json(self._state(0, request.query_params.get("filter", "")))
        return self._response(self._render(first), media_type="text/html", headers=HEADERS)

    def _render(self, first_answer: str) -> str:
        from markupsafe import Markup

        environment = template_environment(PACKAGE)
        tops, sweep = self.live.index.tops, self.live.index.sweep
        kind = "Sweep" if sweep else "Runs"
        if not sweep and len(tops) == 1 and (tops[0] / "status.json").exists():
            kind = "Run"
        return environment.get_template("page.html").render(
            kind=kind,
            heading=", ".join(top.absolute().name for top in tops),
            folder=", ".join(RunFolder(top).shown for top in tops),
            is_editable=self.is_editable,
            first_answer=Markup(first_answer.replace("<", "\\u003c")),  # noqa: S704 (no tag can begin)
        )

    def asset(self, request: Any) -> Any:
        """Return a script or style sheet."""
        name = request.path_params["name"]
        if name not in self.assets:
            return self._response("not found", 404, headers=HEADERS)
        kind = TYPES[name.rpartition(".")[2]]
        return self._response(self.assets[name], media_type=kind, headers=HEADERS)

    def state(self, request: Any) -> Any:
        """Return the rows that changed."""
        query = request.query_params
        since = _whole(query.get("since")) if query.get("server") == self._server else 0
        return self._json(self._state(since, query.get("filter", "")))

    def _state(self, since: int, condition: str) -> dict[str, Any]:
        content = self.live.state(since, condition[:MAX_FILTER])
        return {"server": self._server, "full": since == 0, **content}

    def curves(self, request: Any) -> Any:
        """Return the curves that changed."""
        query = request.query_params
        numbers = [_whole(one) for one in query.get("runs", "").split(",") if one][:MAX_LINES]
        folders = self.live.folders(numbers)
        metrics = [name for name in query.getlist("metric") if name][:20]
        found = self.reader.read([*folders.values()], metrics, _whole(query.get("since")))
        by_folder = {folder: number for number, folder in folders.items()}
        for curve in found["curves"]:
            curve["run"] = by_folder[curve["run"]]
        return self._json(found)

    def log(self, request: Any) -> Any:
        """Return new lines of a run's log."""
        folder = self.live.folder(_whole(request.query_params.get("run"), -1))
        if folder is None:
            return self._json({"error": "no such run"}, 404)
        return self._json(read_log(folder, _whole(request.query_params.get("from"), -1)))

    async def notes(self, request: Any) -> Any:
        """Replace the tags and the note of a run.

        Only JSON is accepted, which pages of other sites cannot send.
        """
        if not request.headers.get("content-type", "").startswith("application/json"):
            return self._json({"error": "expected application/json"}, 415)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                return self._json({"error": "the note is too long"}, 413)
        try:
            content = json.loads(body)
            number, tags, note = content["run"], content["tags"], content["note"]
            is_valid = isinstance(number, int) and isinstance(note, str) and isinstance(tags, list)
            if not is_valid or not all(isinstance(tag, str) for tag in tags):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            return self._json({"error": "expected run, tags and note"}, 400)
        folder = self.live.folder(number)
        if folder is None or not folder.is_dir():
            return self._json({"error": "no such run"}, 404)
        try:
            old = read_notes(folder)
            write_notes(folder, old.changed(tags, set(old.tags) - set(tags), note))
        except InputError as error:
            return self._json({"error": str(error).removeprefix("add_tags=")}, 400)
        self.live.read_again(folder)
        return self._json({"error": ""})

    def _json(self, content: Any, status: int = 200) -> Any:
        return self._response(_to_json(content), status, HEADERS, "application/json")


def _to_json(content: Any) -> str:
    return json.dumps(content, allow_nan=False, separators=(",", ":"))


def _assets() -> dict[str, str]:
    own = files(PACKAGE) / "templates"
    style = read_style() + read_asset(PACKAGE, "runs.css")
    scripts = {file.name: file.read_text("utf-8") for file in own.iterdir() if file.name.endswith(".js")}
    return {"style.css": style, **scripts}


def _whole(text: str | None, default: int = 0) -> int:
    try:
        return int(text or "")
    except ValueError:
        return default
