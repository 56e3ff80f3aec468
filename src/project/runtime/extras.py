"""Imports of optional packages, and the command that installs them."""

from importlib import import_module
from pathlib import Path
from typing import Any

from project.errors import InputError

PACKAGE = Path(__file__).resolve().parents[1]
"""Folder of this package."""


def install_command(extra: str) -> str:
    """Return the command that installs an extra of this project: in a checkout by uv, otherwise by pip."""
    is_checkout = PACKAGE.parent.name == "src" and (PACKAGE.parents[1] / "pyproject.toml").is_file()
    return f"uv sync --extra {extra}" if is_checkout else f"pip install 'project[{extra}]'"


def import_extra(module: str, key: str, extra: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: dotted name.
        key: key and value that need it, for the message.
        extra: extra of this project that installs it.

    Raises:
        InputError: the package is not installed.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise InputError(
            f"{key}: needs {package}, which is not installed; run {install_command(extra)}"
        ) from error
