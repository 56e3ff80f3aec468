"""Provenance of a run: versions, the code's commit, the time."""

import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "omegaconf", "tensorboard")


@cache  # the jobs of a sweep inherit it
def versions() -> Mapping[str, str]:
    """Return the versions of Python and of the packages that decide a run's result."""
    from importlib.metadata import version  # takes longer than all else here

    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


@cache
def git_state() -> Mapping[str, Any] | None:
    """Return the commit of the code and a flag for later changes; None outside of a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit, changes = (
            subprocess.run([*git, *command], capture_output=True, text=True, timeout=10, check=True).stdout
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "changed": bool(changes.strip())}


def now() -> str:
    """Return the time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
