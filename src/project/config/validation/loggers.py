"""Check the packages and credentials that tracking services need."""

import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from project.config.source_index import constant_of
from project.config.validation.command_request import CommandRequest
from project.runtime.extras import install_command

OFFLINE_MODES = ("offline", "dryrun", "disabled")
"""Values of a service's variable for the mode that need no credentials."""


def find_problems(right: Mapping[str, Any], command: CommandRequest) -> Iterator[str]:
    """Yield a line for each logger without its package or API key; arguments as for `data.find_problems`."""
    if not command.here:  # the run's machine may have both
        return
    for key, target in right.items():
        group, _, rest = key.partition(".")
        name, _, last = rest.partition(".")
        if group != "logger" or last != "_target_" or not isinstance(target, str):
            continue
        needs: Mapping[str, Any] = constant_of(target, "REQUIREMENTS") or {}
        if (package := needs.get("package")) is None:
            continue
        if (spec := find_spec(package)) is None or spec.origin is None:  # a folder of this name has none
            extra = needs["extra"]
            yield (
                f"logger.{name}: needs the package {package}, which is not installed; "
                f"run {install_command(extra)}"
            )
        elif not right.get(f"logger.{name}.offline") and not _has_credentials(needs):
            yield (
                f"logger.{name}: no API key (expected the variable {needs['key']} or a login); run "
                f"'{needs['login']}', or set logger.{name}.offline=true"
            )


def _has_credentials(needs: Mapping[str, Any]) -> bool:
    """Return True if the API key of a service is set, stored by a login, or not needed."""
    if "key" not in needs or os.environ.get(needs["key"]):
        return True
    if os.environ.get(needs["mode"]) in OFFLINE_MODES:
        return True
    server = os.environ.get(needs.get("server", ""), "")
    own = urlsplit(server).hostname
    try:
        text = Path(needs["file"]).expanduser().read_text()
        return any(mark in text for mark in ([own] if own else needs["marks"]))
    except (OSError, UnicodeDecodeError, RuntimeError):  # RuntimeError: there is no home folder
        return False
