"""Packages import each other in one direction only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import project

ORDER = (  # a package may import those after it
    *(
        "__main__",
        "commands",
        "new_repository",
        "train",
        "reporting",
        "inference",
        "sweeps",
        "training",
        "config",
        "callbacks",
        "loggers",
        "modules",
    ),
    *("datamodules", "figures", "runs", "runtime", "errors"),
)
TOP = Path(project.__file__).parent
ALLOWED: dict[str, set[str]] = {"train.py": {"commands"}}
"""Imports against the order, by file: `python -m project.train` is a command too."""


def imports(file: Path) -> Iterator[str]:
    """The names of packages and modules of `project` that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "project":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("project."):
            yield (node.module or "").split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (name.name.split(".")[1] for name in node.names if name.name.startswith("project."))


def against_the_order() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for file in sorted(TOP.rglob("*.py")):
        place = file.relative_to(TOP)
        if place.name == "__init__.py" and len(place.parts) == 1:
            continue
        own = ORDER.index(place.parts[0].removesuffix(".py"))
        if wrong := {name for name in imports(file) if ORDER.index(name) < own}:
            found[str(place)] = wrong
    return found


def test_every_package_has_a_place_in_the_order() -> None:
    packages = {path.name for path in TOP.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert packages | {"__main__", "commands", "new_repository", "train", "errors"} == set(ORDER)
    assert len(packages) <= 12


def test_packages_import_in_one_direction() -> None:
    assert against_the_order() == ALLOWED
