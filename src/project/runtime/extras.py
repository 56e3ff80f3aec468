"""Imports of optional packages."""

from importlib import import_module
from typing import Any

from project.errors import InputError


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
            f"{key}: needs {package}, which is not installed; uv sync --extra {extra}"
        ) from error
