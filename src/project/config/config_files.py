"""Check YAML files before Hydra composes them, and locate keys in them for error messages."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml
from omegaconf import DictConfig

from project.errors import InputError
from project.runtime.yaml_files import (
    children,
    display_path,
    line_of,
    load,
    loaded_files,
    read_header,
    read_mapping,
    read_nodes,
    read_text,
    search_folders,
)

PACKAGE = Path(__file__).resolve().parents[1]
HEADER_LINE = re.compile(r"#\s*@(\w+)\s+(\S+)\s*$")


def conf_folder() -> Path:
    """Return the folder of the project's own files, in the installed package or in the checkout."""
    installed = PACKAGE / "conf"
    return installed if installed.is_dir() else PACKAGE.parents[1] / "conf"


def load_for_hydra(name: str, file: Path) -> tuple[DictConfig, str]:
    """Return the configuration and header of a file, and note the file in `loaded`.

    Args:
        name: path below the configuration folder, without `.yaml`.
        file: absolute path, symbolic links resolved.

    Raises:
        InputError: as for `load`, or the defaults list is invalid.
    """
    loaded_files[name] = file
    config = load(file)
    _refuse_wrong_defaults(file)
    return config, read_header(file)


def package_of(file: Path) -> str | None:
    """Return the package in the header of a file that was read before, as in `# @package _global_`."""
    package = None
    for line in filter(None, map(str.strip, read_header(file).splitlines())):
        if not (found := HEADER_LINE.match(line)):
            break
        if found[1] == "package":
            package = found[2]
    return package


def set_searched(paths: Iterable[str]) -> None:
    """Store the folders of a search path in `searched`."""
    plain = (path.removeprefix("file://") for path in paths)
    search_folders[:] = [Path(path) for path in plain if "://" not in path]


def has_alias(file: Path, name: str) -> bool:
    """Return True if a YAML alias in a later block of a file refers to the block of a top-level key."""
    root = read_nodes(file) if "*" in read_text(file) else None
    before: set[int] = set()
    own: set[int] = set()
    for key, child in root.value if isinstance(root, yaml.MappingNode) else ():
        nodes = set(map(id, _descendants(child)))
        if own & nodes:
            return True
        if key.value == name:
            own = nodes - before
        before |= nodes
    return False


def _descendants(node: yaml.Node) -> Iterator[yaml.Node]:
    yield node
    for child in children(node):
        yield from _descendants(child)


def location(file: Path, key: str) -> str:
    """Return the location of a dotted key, as in `conf/train.yaml:3: `; empty if not found."""
    if line := key and (line_of(file, key) or _line_with(file, key.partition(".")[0])):
        return f"{display_path(file)}:{line}: "
    return ""


def location_in(path: str, key: str, root: bool) -> str:
    """Return the location of a dotted key of the configuration in a file of `loaded`; empty if not found.

    A key at the `root` may have dots in its name.
    """
    header = package_of(loaded_files[path])
    group = path.rpartition("/")[0].replace("/", ".")
    package = group if header is None else "" if header == "_global_" else header
    if key == package:
        return f"{display_path(loaded_files[path])}:1: "
    if package and (root or not key.startswith(f"{package}.")):
        return ""
    return location(loaded_files[path], key[len(package) :].lstrip("."))


def is_main(path: str) -> bool:
    """Return True for a file of `loaded` in the first folder of the search path."""
    return bool(search_folders) and loaded_files[path].is_relative_to(search_folders[0].resolve())


def _line_with(file: Path, word: str) -> int:
    """Return the first line whose package header or defaults entry has a word; 0 if none does."""
    pattern = re.compile(rf"(?<![\w-]){re.escape(word)}(?![\w-])")
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        code = line if "@package" in line else line.partition("#")[0] if line.lstrip().startswith("-") else ""
        if pattern.search(code):
            return number
    return 0


def find_loop() -> str:
    """Return an error line for a circular defaults list in `loaded`; empty if there is none."""

    def follow(path: str, way: tuple[str, ...]) -> str:
        if path in way:
            loop = [*way[way.index(path) :], path]
            where = location(loaded_files[path], loop[1].rpartition("/")[2])
            return f"{where}defaults: circular ({' → '.join(loop)}); remove one entry"
        named = _named_in_defaults(path) if path in loaded_files else ()
        return next(filter(None, (follow(name, (*way, path)) for name in named)), "")

    return next(filter(None, (follow(path, ()) for path in loaded_files)), "")


def _named_in_defaults(path: str) -> Iterator[str]:
    """Yield the files in the defaults list of a file, as keys of `loaded`."""
    here = path.rpartition("/")[0]
    for item in read_mapping(loaded_files[path]).get("defaults", []):
        (group, option), *_ = item.items() if isinstance(item, dict) else [("", item)]
        group = str(group).rpartition(" ")[2].partition("@")[0]
        for name in option if isinstance(option, list) else [option]:
            inner = "/".join(filter(None, (group, str(name).partition("@")[0])))
            yield inner[1:] if inner.startswith("/") else f"{here}/{inner}".lstrip("/")


def _refuse_wrong_defaults(file: Path) -> None:
    """Raise an InputError for a defaults list that Hydra cannot read."""
    listed = read_mapping(file).get("defaults", [])
    if not isinstance(listed, list):
        raise InputError(
            f"{location(file, 'defaults')}defaults: expected a list with one '- GROUP: OPTION' per line"
        )
    for item in listed:
        options = list(item.values()) if isinstance(item, dict) else [item]
        names = options[0] if len(options) == 1 and isinstance(options[0], list) else options
        right = isinstance(item, str | dict) and len(options) == 1
        if not right or not all(isinstance(name, str | None) for name in names):
            raise InputError(
                f"{location(file, 'defaults')}defaults: {item}: expected - GROUP: OPTION, or - FILE"
            )
