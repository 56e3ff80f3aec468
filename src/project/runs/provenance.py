"""Provenance of a run: package versions, commit and fingerprint of the code, time."""

import ast
import hashlib
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "omegaconf", "tensorboard")
FINGERPRINTED = ("torch", "torchvision", "lightning", "torchmetrics", "numpy")
"""Packages whose versions affect the result of a run."""
IRRELEVANT = ("sweeps", "runs", "reporting", "inference")
"""Packages of this project that do not affect the result of a run."""


@cache  # forked jobs of a sweep inherit the cache
def versions() -> Mapping[str, str]:
    """Return the versions of Python and of `PACKAGES`."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


@cache
def git_state() -> Mapping[str, Any] | None:
    """Return the commit of the code and a flag for uncommitted changes; None outside a repository."""
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
    """Return the current time in UTC (ISO 8601)."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def fingerprint(package: Path) -> dict[str, str]:
    """Return hashes of the source files below a folder, and the versions of `FINGERPRINTED`.

    Code with equal fingerprints trains equally. Comments, docstrings and formatting are ignored.
    """
    files = [file for file in package.rglob("*.py") if file.relative_to(package).parts[0] not in IRRELEVANT]
    return hashes_below(package, files) | {name: _version(name) for name in FINGERPRINTED}


def hashes_below(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Return the hashes of source files by their paths below a folder, without comments and formatting."""
    return {file.relative_to(folder).as_posix(): _hash(file) for file in sorted(files)}


def changed_names(earlier: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the names whose values differ between two fingerprints."""
    return sorted(name for name in {*earlier, *now} if earlier.get(name) != now.get(name))


def _hash(file: Path) -> str:
    source = file.read_bytes()
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return hashlib.sha256(source).hexdigest()[:16]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [statement for statement in node.body if not _is_text(statement)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def _is_text(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow import

    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
