"""Private names of Lightning, Hydra and OmegaConf occur in one file for each library."""

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import pytest
from torch import nn

import project

SRC = Path(project.__file__).parents[1]
HOMES = {
    "lightning": "project/runtime/lightning_private.py",
    "hydra": "project/config/hydra_patches.py",
    "omegaconf": "project/runtime/yaml_files.py",
}
FILES = {
    "lightning": ("pytorch/**/*.py", "fabric/plugins/**/*.py", "fabric/strategies/**/*.py"),
    "hydra": ("**/*.py",),
    "omegaconf": ("**/*.py",),
}
OTHER_OWNERS = ("torch", "os", "atexit", "threading")
"""Modules with private names of their own, some of which a library may use, too."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and not name.endswith("_")


def names_on_self(tree: ast.AST) -> set[str]:
    """Return the private attributes of `self`, and the private methods that classes define."""
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_own(node.value)}
    names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return set(filter(is_private, names))


def is_own(node: ast.expr) -> bool:
    return ast.unparse(node) in ("self", "cls", "super()")


@cache
def names_of(library: str) -> frozenset[str]:
    """Return the private functions, classes and attributes that a library defines, without those of torch."""
    spec = find_spec(library)
    assert spec is not None
    assert spec.origin is not None
    names: set[str] = set()
    for file in (file for pattern in FILES[library] for file in Path(spec.origin).parent.glob(pattern)):
        tree = ast.parse(file.read_text())
        names |= names_on_self(tree)
        names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        fields = (node.target for node in ast.walk(tree) if isinstance(node, ast.AnnAssign))
        names |= {target.id for target in fields if isinstance(target, ast.Name)}
    return frozenset(filter(is_private, names - vars(nn.Module()).keys()))


def uses(source: str, library: str) -> Iterator[str]:
    """Yield the imports and attributes in a source that are private names of a library."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == library:
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from (name for name in names if is_private(name))
        elif isinstance(node, ast.Import):
            paths = [alias.name.split(".") for alias in node.names]
            yield from (name for path in paths if path[0] == library for name in path if is_private(name))
        elif isinstance(node, ast.Attribute) and node.attr in names_of(library):
            owner = ast.unparse(node.value)
            if not is_own(node.value) and owner.partition(".")[0] not in OTHER_OWNERS:
                yield f"{owner}.{node.attr}"
        elif isinstance(node, ast.keyword) and node.arg in names_of(library):
            yield f"{node.arg}="
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and name.value in names_of(library):
                yield ast.unparse(node)


def inherited_uses(made: type, library: str) -> set[str]:
    """Return the private names of a class that its base classes in a library define."""
    bases = [base for base in made.__mro__ if base.__module__.partition(".")[0] == library]
    theirs = {name for base in bases for name in names_on_self(ast.parse(dedent(inspect.getsource(base))))}
    return theirs & names_on_self(ast.parse(dedent(inspect.getsource(made))))


@pytest.mark.parametrize("library", HOMES)
def test_private_names_occur_in_one_file(library: str) -> None:
    found = {}
    for file in sorted(SRC.rglob("*.py")):
        place = file.relative_to(SRC).as_posix()
        home_of = next((other for other, home in HOMES.items() if home == place), "")
        if home_of == library:
            continue
        names = set(uses(file.read_text(), library))
        if home_of:
            names = {name for name in names if name.rpartition(".")[2] not in names_of(home_of)}
        if names:
            found[place] = sorted(names)
    assert found == {}


@pytest.mark.parametrize("library", HOMES)
def test_subclasses_use_no_private_names_of_their_bases(library: str) -> None:
    found = {}
    for file in sorted(SRC.rglob("*.py")):
        place = file.relative_to(SRC).as_posix()
        if place == HOMES[library] or "\nclass " not in (text := file.read_text()):
            continue
        if library not in text:  # neither it nor the module with the base class names the library
            continue
        name = place.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for made in vars(import_module(name)).values():
            own = isinstance(made, type) and made.__module__ == name
            if own and (names := inherited_uses(made, library)):
                found[made.__qualname__] = sorted(names)
    assert found == {}


@pytest.mark.parametrize(
    ("library", "line"),
    [
        ("lightning", "from lightning.pytorch.loops.loop import _Loop"),
        ("lightning", "trainer._logger_connector.on_epoch_end()"),
        ("lightning", "self.trainer.fit_loop._should_accumulate()"),
        ("lightning", "hasattr(strategy, '_timeout')"),
        ("hydra", "import hydra._internal.utils"),
        ("hydra", "raise result._return_value"),
        ("hydra", "JobReturn(_return_value=1)"),
        ("omegaconf", "node._get_node(name)"),
    ],
)
def test_private_names_are_found(library: str, line: str) -> None:
    assert len(list(uses(line, library))) == 1


def test_private_names_in_subclasses_are_found() -> None:
    from lightning.pytorch.loggers import TensorBoardLogger

    class Logger(TensorBoardLogger):
        def reset(self) -> None:
            self._experiment = None

    assert inherited_uses(Logger, "lightning") == {"_experiment"}
