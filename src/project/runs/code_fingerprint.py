"""Fingerprint of the code: two states with the same fingerprint train alike."""

import ast
import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "numpy")
IRRELEVANT = ("sweeps", "runs", "reporting", "inference")
"""Packages that no result of a run depends on."""


def fingerprint(package: Path) -> dict[str, str]:
    """Return all that decides a run's result besides its configuration: source files and package versions.

    Comments, docstrings and layout do not count.

    Args:
        package: folder of the source.

    Returns:
        A hash by file name, a version by package name.
    """
    files = [
        file for file in sorted(package.rglob("*.py")) if file.relative_to(package).parts[0] not in IRRELEVANT
    ]
    hashes = {file.relative_to(package).as_posix(): _hash(file) for file in files}
    return hashes | {name: _version(name) for name in PACKAGES}


def differences(earlier: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the names that differ."""
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
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
