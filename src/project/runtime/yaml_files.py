"""YAML files: read within bounds, each once, with the line of every key.

Hydra reads its files through `load_for_hydra`, other code through `load` and `read_mapping`. A file that is
no YAML, too large, or nested too deeply is refused with its name and line before anything is composed.
"""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from project.errors import InputError, one_line
from project.runtime.files import reason_of
from project.runtime.yaml_text import Loader

MAX_BYTES = 4 << 20
"""Of a file: 100 times what the longest list of class names takes."""
MAX_VALUES = 200_000
"""In a file, with what its aliases stand for."""
MAX_LEVELS = 100
"""Of brackets and blocks within each other."""
ENCODINGS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""By the first bytes of a file; all others are UTF-8."""
HEADER = 512
"""Characters at the start of a file in which Hydra looks for `# @package`."""
HEADER_LINE = re.compile(r"#\s*@(\w+)\s+(\S+)\s*$")
SEARCH_PATH = "hydra.searchpath="

loaded: dict[str, Path] = {}
"""Files that Hydra has read in this process, by their path below the folder, without `.yaml`."""
originals: dict[Path, Path] = {}
"""Original of each copy that a sweep made of a configuration file in this process, for messages."""
searched: list[Path] = []
"""Folders that Hydra searched last; a file in one hides those of the same name in the following ones."""


def load_for_hydra(name: str, file: Path) -> tuple[DictConfig, str]:
    """Read a file on Hydra's behalf and keep its path in `loaded`.

    Args:
        name: path below the folder, without `.yaml`.
        file: absolute path, with links followed.

    Returns:
        The configuration, and the start of the text, which may have a header `# @package`.

    Raises:
        InputError: see `load`; or the defaults list is wrong.
    """
    loaded[name] = file
    config = load(file)
    _refuse_wrong_defaults(file)
    return config, _read(file)[0]


def package_of(file: Path) -> str | None:
    """Return the package of a file's header, as in `# @package _global_`. The file was read before."""
    package = None
    for line in filter(None, map(str.strip, _read(file)[0].splitlines())):
        if not (found := HEADER_LINE.match(line)):
            break
        if found[1] == "package":
            package = found[2]
    return package


def set_searched(paths: Iterable[str]) -> None:
    """Keep the folders of a search path in `searched`."""
    plain = (path.removeprefix("file://") for path in paths)
    searched[:] = [Path(path) for path in plain if "://" not in path]


def config_folders(sources: Iterable[Any]) -> list[Path]:
    """Return the folders of a composed configuration's files, the first one first.

    Args:
        sources: `hydra.runtime.config_sources`.
    """
    return [Path(source.path) for source in sources if source.schema == "file"]


def shown(file: Path) -> str:
    """Return a path as a user would type it."""
    file, here = originals.get(file, file), Path.cwd()
    return str(file.relative_to(here) if file.is_relative_to(here) else file)


def read_text(file: Path, errors: str = "strict") -> str:
    """Read a text file: UTF-8 with or without a byte-order mark, or UTF-16 with one.

    Args:
        file: path of the file.
        errors: treatment of bytes that are no text (see `bytes.decode`).

    Raises:
        InputError: it is no regular file, cannot be read, is too large, or no text.
    """
    name = shown(file)
    try:
        if file.is_dir():
            raise InputError(f"{name}: a folder; name a text file")
        if file.exists() and not file.is_file():  # opening a pipe would wait for its other end
            raise InputError(f"{name}: no regular file; name a text file")
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise InputError(f"{name}: {reason_of(error)}; name a text file") from error
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({reason_of(error)})") from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{name}: larger than {MAX_BYTES >> 20} MiB; a configuration is shorter")
    try:
        return data.decode(ENCODINGS.get(data[:2], "utf-8-sig"), errors)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name}:{line}: no UTF-8 text; save the file as UTF-8") from error


def read_mapping(file: Path) -> dict[str, Any]:
    """Read the keys of a YAML file, as OmegaConf reads YAML; nothing for an empty one.

    Returns:
        Plain values that belong to a cache: do not change them.

    Raises:
        InputError: as for `read_text`; or it is no YAML, too large with its aliases, or has no keys.
    """
    found = read_yaml(file)
    if isinstance(found, dict | None):
        return found or {}
    kind = "a list" if isinstance(found, list) else "only words"
    raise InputError(f"{shown(file)}:1: {kind}, but keys with values are needed, as in seed: 1")


def read_yaml(file: Path) -> Any:
    """Read a YAML file of any kind; otherwise as `read_mapping`."""
    return _read(file)[1]


def load(file: Path) -> DictConfig:
    """Read a YAML file as `OmegaConf.load` does.

    Raises:
        InputError: as for `read_mapping`; or OmegaConf cannot hold a value.
    """
    plain = read_mapping(file)
    try:
        return OmegaConf.create(plain)
    except (OmegaConfBaseException, RecursionError) as error:
        key = str(getattr(error, "full_key", None) or "")
        where = f"{shown(file)}:{line_of(file, key) or 1}: {key}{key and ': '}"
        raise InputError(f"{where}{_reason(error)}") from error


def line_of(file: Path, key: str) -> int:
    """Return the line of a dotted key in a file that was read before; 0 if it is not there."""
    node, line = yaml.compose(read_text(file), Loader), 0
    while key:
        found = None
        for name, child in node.value if isinstance(node, yaml.MappingNode) else ():
            if name.value == key or key.startswith(f"{name.value}."):
                found, rest = (name.start_mark.line + 1, child), key[len(name.value) + 1 :]
        if found is None:
            return 0
        (line, node), key = found, rest
    return line


def has_alias(file: Path, name: str) -> bool:
    """Return true if aliases in later blocks of a file refer to the block of a key at its top."""
    root = yaml.compose(read_text(file), Loader) if "*" in read_text(file) else None
    before: set[int] = set()
    own: set[int] = set()
    for key, child in root.value if isinstance(root, yaml.MappingNode) else ():
        nodes = set(map(id, _nodes(child)))
        if own & nodes:
            return True
        if key.value == name:
            own = nodes - before
        before |= nodes
    return False


def _nodes(node: yaml.Node) -> Iterator[yaml.Node]:
    yield node
    for child in _children(node):
        yield from _nodes(child)


def _children(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return chain.from_iterable(node.value)
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def place(file: Path, key: str) -> str:
    """Return the start of a message, `conf/train.yaml:3: `, for a dotted key, or its name in the defaults.

    Returns:
        An empty string if the file has neither.
    """
    if line := key and (line_of(file, key) or _line_with(file, key.partition(".")[0])):
        return f"{shown(file)}:{line}: "
    return ""


def place_of(path: str, key: str, root: bool) -> str:
    """Return the start of a message for a key of the configuration in a file of `loaded` (see `place`).

    Args:
        path: key of `loaded`.
        key: dotted.
        root: the key stands at the top, and may have dots in it.
    """
    header = package_of(loaded[path])
    group = path.rpartition("/")[0].replace("/", ".")
    package = group if header is None else "" if header == "_global_" else header
    if key == package:
        return f"{shown(loaded[path])}:1: "
    if package and (root or not key.startswith(f"{package}.")):
        return ""
    return place(loaded[path], key[len(package) :].lstrip("."))


def is_main(path: str) -> bool:
    """Return true for a file of `loaded` that lies in the first of the folders that Hydra searches."""
    return bool(searched) and loaded[path].is_relative_to(searched[0].resolve())


def _line_with(file: Path, word: str) -> int:
    """Return the first line with a word in the package header or the defaults list, 0 without one."""
    pattern = re.compile(rf"(?<![\w-]){re.escape(word)}(?![\w-])")
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        code = line if "@package" in line else line.partition("#")[0] if line.lstrip().startswith("-") else ""
        if pattern.search(code):
            return number
    return 0


def find_loop() -> str:
    """Return an error line for a file of `loaded` whose defaults lead back to it; empty without one."""

    def follow(path: str, way: tuple[str, ...]) -> str:
        if path in way:
            loop = [*way[way.index(path) :], path]
            where = place(loaded[path], loop[1].rpartition("/")[2])
            return f"{where}defaults: lead back to this file ({' → '.join(loop)}); leave one out"
        named = _named_in_defaults(path) if path in loaded else ()
        return next(filter(None, (follow(name, (*way, path)) for name in named)), "")

    return next(filter(None, (follow(path, ()) for path in loaded)), "")


def _named_in_defaults(path: str) -> Iterator[str]:
    """Yield the files that a file's defaults list names, as keys of `loaded`."""
    here = path.rpartition("/")[0]
    for item in read_mapping(loaded[path]).get("defaults", []):
        (group, option), *_ = item.items() if isinstance(item, dict) else [("", item)]
        group = str(group).rpartition(" ")[2].partition("@")[0]
        for name in option if isinstance(option, list) else [option]:
            inner = "/".join(filter(None, (group, str(name).partition("@")[0])))
            yield inner[1:] if inner.startswith("/") else f"{here}/{inner}".lstrip("/")


def _refuse_wrong_defaults(file: Path) -> None:
    """Refuse a defaults list that Hydra cannot read."""
    listed = read_mapping(file).get("defaults", [])
    if not isinstance(listed, list):
        raise InputError(f"{place(file, 'defaults')}defaults: must be a list, a line '- GROUP: OPTION' each")
    for item in listed:
        options = list(item.values()) if isinstance(item, dict) else [item]
        names = options[0] if len(options) == 1 and isinstance(options[0], list) else options
        right = isinstance(item, str | dict) and len(options) == 1
        if not right or not all(isinstance(name, str | None) for name in names):
            raise InputError(f"{place(file, 'defaults')}defaults: {item}: write - GROUP: OPTION, or - FILE")


def _read(file: Path) -> tuple[str, Any]:
    """Return a file's first characters and its values, read again when it has changed."""
    try:
        stat = file.stat()
    except OSError as error:
        raise InputError(f"{shown(file)}: cannot be read ({reason_of(error)})") from error
    return _parse(file, (stat.st_ino, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=1024)
def _parse(file: Path, version: tuple[int, ...]) -> tuple[str, Any]:
    text, name = read_text(file), shown(file)
    try:
        loader = Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return text[:HEADER], None
            _measure(node, name, {}, 0)
            return text[:HEADER], loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise InputError(f"{name}{_explain(error, text)}") from error
    except yaml.reader.ReaderError as error:  # its position counts bytes
        line = text.encode("utf-8", "replace").count(b"\n", 0, error.position) + 1
        raise InputError(f"{name}:{line}: character {error.character!r}: {error.reason}") from error
    except InputError:
        raise
    except (ValueError, TypeError, NotImplementedError, RecursionError) as error:
        raise InputError(f"{name}: {_reason(error)}") from error


def _measure(node: yaml.Node, name: str, known: dict[int, tuple[int, int]], level: int) -> tuple[int, int]:
    """Return the number of a node's values and of the levels below it, with what its aliases stand for."""
    if isinstance(node, yaml.ScalarNode):
        return 1, -1
    where = f"{name}:{node.start_mark.line + 1}"
    too_deep = InputError(f"{where}: nested more than {MAX_LEVELS} levels deep")
    if id(node) not in known:
        if level == MAX_LEVELS:
            raise too_deep
        known[id(node)] = (-1, 0)
        below = [_measure(child, name, known, level + 1) for child in _children(node)]
        num_levels = max((levels + 1 for _, levels in below), default=0)
        known[id(node)] = (1 + sum(values for values, _ in below), num_levels)
    values, levels = known[id(node)]
    if values < 0:
        raise InputError(f"{where}: holds an alias of itself; write the values out")
    if level + levels >= MAX_LEVELS:
        raise too_deep
    if values > MAX_VALUES:
        raise InputError(f"{where}: more than {MAX_VALUES} values, with those of its aliases")
    return values, levels


def _explain(error: yaml.MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    lines = text.splitlines()
    if mark and line <= len(lines) and lines[line - 1][mark.column : mark.column + 1] == "\t":
        return f":{line}: a tab; indent with spaces"
    if found := re.fullmatch(r"found duplicate key (.*)", error.problem or ""):
        return f":{line}: {found[1]}: stands there twice; leave one"
    start = error.context_mark.line + 1 if error.context_mark else line
    where = f" in line {line}" if start != line else ""
    return f":{start}: {', '.join(filter(None, (error.context, error.problem)))}{where}"


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else one_line(error)


def raw_child(node: DictConfig, name: Any) -> Any:
    """Return a child of a configuration as it is written.

    OmegaConf's public access resolves interpolations, which may fail. This is the only place that uses
    OmegaConf's private names; tested with 2.3.1 and 2.4.1rc1.

    Args:
        node: group, or a whole configuration.
        name: key of the child.

    Returns:
        A group or list as a node, a value, or the text of an interpolation; None if there is no such key.
    """
    child: Any = node._get_node(name, validate_access=False)
    return child if child is None or OmegaConf.is_config(child) else child._value()
