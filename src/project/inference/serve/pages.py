"""Pages of the server: one to draw on, one that describes the API. They load nothing from other hosts."""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from fastapi.responses import HTMLResponse

import project

TEMPLATES = (
    Path(__file__).parent / "templates",
    Path(project.__file__).parent / "reporting" / "html" / "templates",  # the style that all pages share
)
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _source(name: str) -> str:
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _render(template: str, script: str = "", **content: Any) -> HTMLResponse:
    styles = "\n".join(_source(name) for name in ("style.css", "serve.css"))
    page = _environment().get_template(template).render(**content, style=styles, script=script)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    scripts = f"; script-src 'sha256-{digest}'" if script else ""
    headers = {
        "Content-Security-Policy": POLICY + scripts,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return HTMLResponse(page, headers=headers)


def draw_page(models: list[dict[str, Any]]) -> HTMLResponse:
    """Return the page on which one draws, or shows pictures.

    Args:
        models: name, run, checkpoint, version, classes and input shape of each model.
    """
    listed = [{key: value for key, value in model.items() if key != "classes"} for model in models]
    for model, entry in zip(models, listed, strict=True):
        entry["num_classes"] = len(model["classes"])
        entry["is_digits"] = model["classes"] == [str(digit) for digit in range(10)]
    return _render("draw.html", _source("draw.js"), models=listed)


def api_page(schema: dict[str, Any]) -> HTMLResponse:
    """Return the page that describes the API.

    Args:
        schema: OpenAPI description.
    """
    operations = [
        {"method": method.upper(), "path": path, **operation}
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]
    return _render("api.html", info=schema["info"], operations=operations)
