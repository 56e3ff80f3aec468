"""HTML pages: their common style sheet, the environment of their templates, and hashes of their scripts."""

import base64
import hashlib
from collections.abc import Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2


def read_style() -> str:
    """Return the style sheet that all pages share."""
    return (files("project.runtime") / "style.css").read_text("utf-8")


def template_environment(package: str, finalize: Callable[[Any], Any] | None = None) -> "jinja2.Environment":
    """Return an environment for the folder `templates` of a package; values are escaped.

    Args:
        package: name of the package.
        finalize: function that converts each value before it is escaped [none].
    """
    import jinja2  # slow to import

    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def read_asset(package: str, name: str) -> str:
    """Return a file in the folder `templates` of a package, such as a script."""
    return (files(package) / "templates" / name).read_text("utf-8")


def script_hash(script: str) -> str:
    """Return the SHA-256 digest of an inline script, for a Content-Security-Policy."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
