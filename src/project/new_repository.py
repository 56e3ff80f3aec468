"""Command `project-new`: write a small repository with its own package, configuration files and a test."""

import json
import keyword
import re
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from project.config.command_options import option
from project.errors import InputError
from project.runtime.atomic_files import reason_of

DISTRIBUTION = "project"
TEMPLATES = Path(__file__).resolve().parent / "templates" / "repository"
PLACEHOLDER = "PACKAGE"
"""Part of a template's path that becomes the name of the package."""
SUFFIX = ".jinja"
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
EXAMPLES = """\
examples:
  python scripts/new.py wind_forecast
  python scripts/new.py wind-forecast folder=~/work/wind
"""


@dataclass
class Options:
    """Write a repository with a LightningModule, a data module, configuration files and a test."""

    name: str = option(help="name of the repository and of its package; `name=` is optional")
    folder: Path | None = option(None, "folder to make; null: the name, in the working directory")


def main(options: Options) -> None:
    """Write the repository and print the next commands.

    Raises:
        InputError: the name is not a valid package name, or is taken; or the folder exists or cannot be made.
    """
    folder = options.folder or Path(options.name)
    package = write_repository(options.name, folder)
    print(f"{folder}: {sum(file.is_file() for file in folder.rglob('*'))} files; next:")
    print(f"  cd {folder}\n  uv sync   # or: pip install -e .")
    print(f"  uv run project-train --config-dir conf experiment={package}")


def package_of(name: str) -> str:
    """Return the import name of a repository's package.

    Raises:
        InputError: there can be no package of that name, or another package has it.
    """
    package = name.replace("-", "_").lower()
    if not NAME.fullmatch(name) or keyword.iskeyword(package):
        raise InputError(
            f"name={name}: not a valid package name (expected letters, digits, _ and -); choose another"
        )
    if package in sys.stdlib_module_names or find_spec(package) is not None:
        raise InputError(f"name={name}: a package {package} is installed already; choose another")
    return package


def write_repository(name: str, folder: Path) -> str:
    """Write the rendered templates to a new folder.

    Args:
        name: of the repository; with `_` for `-`, of its package.
        folder: new or empty folder.

    Returns:
        The import name of its package.

    Raises:
        InputError: see `main`.
    """
    from importlib.metadata import version  # slow imports, and only this command needs them

    from jinja2 import Environment, StrictUndefined

    values = {
        "name": name,
        "package": package_of(name),
        "version": version(DISTRIBUTION),
        "source": installed_source(),
    }
    environment = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 (no HTML)
    )
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"folder={folder}: already exists; give another with folder=FOLDER")
        for template in sorted(TEMPLATES.rglob(f"*{SUFFIX}")):
            path = str(template.relative_to(TEMPLATES)).removesuffix(SUFFIX)
            file = folder / path.replace(PLACEHOLDER, values["package"])
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(environment.from_string(template.read_text(encoding="utf-8")).render(values))
    except OSError as error:
        raise InputError(f"folder={folder}: cannot be written ({reason_of(error)}); give another") from error
    return str(values["package"])


def installed_source() -> str:
    """Return the source of this package for `[tool.uv.sources]`, as `path = …`; empty for an index.

    A package that was installed from a folder or a wheel file is not a package of an index. The record is
    `direct_url.json` (PEP 610).
    """
    from importlib.metadata import distribution
    from urllib.parse import unquote, urlparse

    text = distribution(DISTRIBUTION).read_text("direct_url.json")
    record = json.loads(text) if text else {}
    url = urlparse(record.get("url", ""))
    if url.scheme != "file":
        return ""
    editable = ", editable = true" if record.get("dir_info", {}).get("editable") else ""
    return f"path = {json.dumps(unquote(url.path))}{editable}"
