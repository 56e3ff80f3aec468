"""What a run was made with and when: versions, the code's commit, the time."""

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
    """Of Python and of what decides a run's result."""
    from importlib.metadata import version  # takes longer than all else here

    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


@cache
def git_state() -> Mapping[str, Any] | None:
    """Commit of the code and whether it was changed since, or None outside a repository."""
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(Path(__file__).parent), *command],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": bool(changes)}


def now() -> str:
    """The time as records have it: UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
