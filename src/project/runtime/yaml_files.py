"""YAML files, read with size limits and cached, with the lines of keys; and YAML text.

Invalid, too large or too deeply nested files are refused with name and line. YAML is read and written as by
OmegaConf, but with libyaml, which takes a fifth of the time of PyYAML's own parser. Private names of
OmegaConf occur in this module alone; tested with omegaconf 2.3.1.
"""

import re
import stat
from collections.abc import Iterable
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, base, grammar_parser
from omegaconf import _utils as omegaconf_utils
from omegaconf.errors import OmegaConfBaseException

from project.errors import InputError, one_line
from project.runtime.atomic_files import reason_of
from project.runtime.secrets import redact
from project.runtime.text import is_numeric

try:
    from yaml import CSafeDumper as SafeDumper
    from yaml import CSafeLoader as SafeLoader
except ImportError:  # PyYAML was built without libyaml
    from yaml import SafeDumper, SafeLoader

MAX_BYTES = 4 << 20
"""Largest file [bytes]: 100 times the size of the longest list of class names."""
MAX_VALUES = 200_000
"""Most values in a file, with aliases expanded."""
MAX_LEVELS = 100
"""Most nested brackets and blocks."""
ENCODINGS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""Encodings by the first bytes of a file; other files are UTF-8."""
HEADER = 512
"""Length of the start of a file in which Hydra looks for `# @package` [characters]."""
SEARCH_PATH = "hydra.searchpath="

FLOAT = re.compile(
    r"""^(?:[-+]?[0-9]+(?:_[0-9]+)*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9]+(?:_[0-9]+)*(?:[eE][-+]?[0-9]+)
    |\.[0-9]+(?:_[0-9]+)*(?:[eE][-+][0-9]+)?
    |[-+]?[0-9]+(?:_[0-9]+)*(?::[0-5]?[0-9])+\.[0-9_]*
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)
"""Numbers such as 1e-3, which YAML 1.1 reads as text."""
BOOLEANS = frozenset(["y", "n", "yes", "no", "true", "false", "on", "off"])

loaded_files: dict[str, Path] = {}
"""Files of the configuration that Hydra composed last, by their relative paths without `.yaml`."""
original_files: dict[Path, Path] = {}
"""Originals of the configuration files that a sweep copied in this process, by copy, for messages."""
search_folders: list[Path] = []
"""Folders that Hydra searched last; a file hides those of the same name in later folders."""


class Loader(SafeLoader):  # type: ignore[misc]
    """YAML loader that reads 1e-3 as a number and dates as text, and refuses repeated keys, as OmegaConf."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        keys: set[str] = set()
        for key, _ in node.value:
            if key.tag == yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG:
                if key.value in keys:
                    raise yaml.constructor.ConstructorError(
                        "while constructing a mapping",
                        node.start_mark,
                        f"found duplicate key {key.value}",
                        key.start_mark,
                    )
                keys.add(key.value)
        return super().construct_mapping(node, deep=deep)


Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in Loader.yaml_implicit_resolvers.items()
}


def speed_up_omegaconf() -> None:
    """Let OmegaConf 2.3 parse each interpolation once, not at each access, and read YAML by libyaml."""
    omegaconf_utils.parse = base.parse = _parse_grammar
    omegaconf_utils.get_yaml_loader = lambda: Loader


_parse_grammar = lru_cache(maxsize=10_000)(grammar_parser.parse)


class _Dumper(SafeDumper):  # type: ignore[misc]
    """YAML dumper that quotes strings that would be read as another type."""


def _represent_text(dumper: Any, text: str) -> yaml.ScalarNode:
    is_boolean = text.lower() in BOOLEANS and text in (text.lower(), text.upper(), text.capitalize())
    tag = yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG
    return dumper.represent_scalar(tag, text, style="'" if is_boolean or is_numeric(text) else None)


_Dumper.add_representer(str, _represent_text)


def to_yaml(config: Any) -> str:
    """Return the text of `OmegaConf.to_yaml`, with secrets redacted; long strings may be folded elsewhere."""
    plain = OmegaConf.to_container(config, enum_to_str=True) if OmegaConf.is_config(config) else config
    return yaml.dump(
        redact(plain), Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False
    )


def config_folders(sources: Iterable[Any]) -> list[Path]:
    """Return the folders of a composed configuration from `hydra.runtime.config_sources`."""
    return [Path(source.path) for source in sources if source.schema == "file"]


def display_path(file: Path) -> str:
    """Return a path as the user types it: relative if below the current folder, the original of a copy."""
    file, here = original_files.get(file, file), Path.cwd()
    return str(file.relative_to(here) if file.is_relative_to(here) else file)


def read_text(file: Path, errors: str = "strict") -> str:
    """Read a text file: UTF-8 with or without a byte-order mark, or UTF-16 with one.

    Raises:
        InputError: the path is not a regular file, or the file is unreadable, too large or not text.
    """
    try:
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{display_path(file)}: is a folder; give a text file")
        if not stat.S_ISREG(mode):  # opening a pipe would block
            raise InputError(f"{display_path(file)}: not a regular file; give a text file")
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise InputError(f"{display_path(file)}: {reason_of(error)}; give an existing text file") from error
    except OSError as error:
        raise InputError(f"{display_path(file)}: cannot be read ({reason_of(error)}); restore it") from error
    if len(data) > MAX_BYTES:
        raise InputError(
            f"{display_path(file)}: larger than {MAX_BYTES >> 20} MiB; a configuration is shorter"
        )
    try:
        return data.decode(ENCODINGS.get(data[:2], "utf-8-sig"), errors)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{display_path(file)}:{line}: not UTF-8 text; save the file as UTF-8") from error


def read_mapping(file: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file, as OmegaConf reads YAML; an empty file gives an empty mapping.

    Returns:
        Plain values from a cache, which must not be modified.

    Raises:
        InputError: as in `read_text`; or the file is no YAML, has no keys, or has too many values.
    """
    found = read_yaml(file)
    if isinstance(found, dict | None):
        return found or {}
    kind = "a list" if isinstance(found, list) else "a single value"
    raise InputError(f"{display_path(file)}:1: {kind}, but keys with values are needed, as in seed: 1")


def read_yaml(file: Path) -> Any:
    """Read a YAML file with any content; apart from that, like `read_mapping`."""
    return _read(file)[1]


def load(file: Path) -> DictConfig:
    """Read a YAML file like `OmegaConf.load`.

    Raises:
        InputError: as in `read_mapping`; or OmegaConf does not support a value.
    """
    plain = read_mapping(file)
    try:
        return OmegaConf.create(plain)
    except (OmegaConfBaseException, RecursionError) as error:
        key = str(getattr(error, "full_key", None) or "")
        where = f"{display_path(file)}:{line_of(file, key) or 1}: {key}{key and ': '}"
        raise InputError(f"{where}{_reason(error)}") from error


def line_of(file: Path, key: str) -> int:
    """Return the line of a dotted key in a file that was read before; 0 if the key is missing."""
    node, line = read_nodes(file), 0
    while key:
        found = None
        for name, child in node.value if isinstance(node, yaml.MappingNode) else ():
            if name.value == key or key.startswith(f"{name.value}."):
                found, rest = (name.start_mark.line + 1, child), key[len(name.value) + 1 :]
        if found is None:
            return 0
        (line, node), key = found, rest
    return line


def children(node: yaml.Node) -> Iterable[yaml.Node]:
    """Return the direct children of a YAML node, keys included."""
    if isinstance(node, yaml.MappingNode):
        return chain.from_iterable(node.value)
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def read_nodes(file: Path) -> Any:
    """Return the root node of a YAML file; nodes have line numbers."""
    return yaml.compose(read_text(file), Loader)


def read_header(file: Path) -> str:
    """Return the start of a YAML file, which may contain `# @package`."""
    return _read(file)[0]


def _read(file: Path) -> tuple[str, Any]:
    """Return the header and the values of a file, cached until the file changes."""
    try:
        found = file.stat()
    except OSError as error:
        raise InputError(f"{display_path(file)}: cannot be read ({reason_of(error)}); restore it") from error
    return _parse(file, (found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=1024)
def _parse(file: Path, version: tuple[int, ...]) -> tuple[str, Any]:
    text, name = read_text(file), display_path(file)
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
    """Return the number of values in a node and of levels below it, with aliases expanded."""
    if isinstance(node, yaml.ScalarNode):
        return 1, -1
    where = f"{name}:{node.start_mark.line + 1}"
    too_deep = InputError(f"{where}: nested more than {MAX_LEVELS} levels deep")
    if id(node) not in known:
        if level == MAX_LEVELS:
            raise too_deep
        known[id(node)] = (-1, 0)
        below = [_measure(child, name, known, level + 1) for child in children(node)]
        num_levels = max((levels + 1 for _, levels in below), default=0)
        known[id(node)] = (1 + sum(values for values, _ in below), num_levels)
    values, levels = known[id(node)]
    if values < 0:
        raise InputError(f"{where}: contains an alias of itself; write the values out")
    if level + levels >= MAX_LEVELS:
        raise too_deep
    if values > MAX_VALUES:
        raise InputError(f"{where}: more than {MAX_VALUES} values with aliases expanded")
    return values, levels


def _explain(error: yaml.MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    lines = text.splitlines()
    if mark and line <= len(lines) and lines[line - 1][mark.column : mark.column + 1] == "\t":
        return f":{line}: a tab; indent with spaces"
    if found := re.fullmatch(r"found duplicate key (.*)", error.problem or ""):
        return f":{line}: {found[1]}: repeated key; remove one"
    start = error.context_mark.line + 1 if error.context_mark else line
    where = f" in line {line}" if start != line else ""
    return f":{start}: {', '.join(filter(None, (error.context, error.problem)))}{where}"


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else one_line(error)


def raw_child(node: DictConfig, name: Any) -> Any:
    """Return a child of a configuration without resolving interpolations; None if the key is missing.

    OmegaConf's public access resolves interpolations, which may fail. No other function uses OmegaConf's
    private names. Tested with OmegaConf 2.3.1 and 2.4.1rc1.
    """
    child: Any = node._get_node(name, validate_access=False)
    return child if child is None or OmegaConf.is_config(child) else child._value()
