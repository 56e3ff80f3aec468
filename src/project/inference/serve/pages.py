"""Pages of the server: one to draw on, one that describes the API. They load nothing from other hosts."""

from functools import cache
from typing import TYPE_CHECKING, Any

from fastapi.responses import HTMLResponse

from project.runtime.web_pages import read_asset, read_style, script_hash, template_environment

if TYPE_CHECKING:
    import jinja2

PACKAGE = "project.inference.serve"
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@cache
def _environment() -> "jinja2.Environment":
    return template_environment(PACKAGE)


def _render(template: str, script: str = "", **content: Any) -> HTMLResponse:
    style = read_style() + read_asset(PACKAGE, "serve.css")
    page = _environment().get_template(template).render(**content, style=style, script=script)
    scripts = f"; script-src 'sha256-{script_hash(script)}'" if script else ""
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
    return _render("draw.html", read_asset(PACKAGE, "draw.js"), models=listed)


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
