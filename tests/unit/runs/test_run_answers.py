"""Answers of the live page's server, without a browser."""

import asyncio
import json
import re
import shutil
from pathlib import Path
from typing import Any

import httpx
from written_runs import write_sweep

from project.reporting.runs import server
from project.reporting.runs.live import LiveRuns
from project.reporting.runs.server import make_app

TEMPLATES = Path(server.__file__).parent / "templates"


def ask(app: Any, method: str, path: str, **more: Any) -> httpx.Response:
    """Return the answer of an application, without a server."""

    async def answer() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, **more)

    return asyncio.run(answer())


def test_answers_refuse_other_sites_and_wrong_requests(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    app = make_app([sweep], is_editable=True)
    page = ask(app, "GET", "/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http:" not in page.text
    scripts = re.findall(r'from "\./(\w+\.js)"', "".join(map(Path.read_text, TEMPLATES.glob("*.js"))))
    for name in ("style.css", "runs.js", *scripts):
        assert ask(app, "GET", f"/{name}").status_code == 200
    note = {"run": 0, "tags": ["x"], "note": ""}
    plain = {"content-type": "text/plain"}
    assert ask(app, "POST", "/notes", content=json.dumps(note), headers=plain).status_code == 415
    for changes, status in (
        ({"run": 99}, 404),
        ({"run": "0"}, 400),
        ({"tags": "x"}, 400),
        ({"tags": ["two words"]}, 400),
        ({"note": "x" * 70_000}, 413),
    ):
        assert ask(app, "POST", "/notes", json=note | changes).status_code == status
    for path in ("/page.html", "/log?run=99", "/log?run=../..&from=x", "/log"):
        assert ask(app, "GET", path).status_code == 404
    assert not list(sweep.glob("*/notes.json"))
    assert (
        ask(app, "GET", "/state?since=x&filter='").json()["filter_error"] == "filter: a quote is not closed"
    )
    assert ask(make_app([sweep]), "POST", "/notes", json=note).status_code in (404, 405)


def test_page_contains_the_first_answer(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    (sweep / "3" / "notes.json").write_text(json.dumps({"note": "</script><b>&amp;"}))
    app = make_app([sweep])
    for condition in ("", "note~script"):
        text = ask(app, "GET", "/", params={"filter": condition}).text
        (found,) = re.findall(r'id="first-answer">(.*?)</script>', text)
        first = json.loads(found)
        assert first == ask(app, "GET", "/state", params={"filter": condition}).json()
        assert first["rows"][3]["note"] == "</script><b>&amp;"


def test_a_removed_folder_is_reported(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep")
    live = LiveRuns([folder], refresh_s=0.0)
    live.index.scan_s = 0.0
    assert len(live.state(0, "")["rows"]) == 12
    shutil.rmtree(folder)
    live.index.search_again()
    assert "no such folder" in live.state(0, "")["summary"]["end"]
