"""Read and write YAML as OmegaConf does, by libyaml: PyYAML's own parser takes five times as long."""

import re
from typing import Any

import yaml
from omegaconf import OmegaConf

from project.runtime.secrets import redact

try:
    from yaml import CSafeDumper as SafeDumper
    from yaml import CSafeLoader as SafeLoader
except ImportError:  # PyYAML was built without libyaml
    from yaml import SafeDumper, SafeLoader

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


class Loader(SafeLoader):  # type: ignore[misc]
    """Reads 1e-3 as a number and dates as text, and refuses repeated keys, as OmegaConf's loader does."""

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


class _Dumper(SafeDumper):  # type: ignore[misc]
    """Quotes strings that would be read as another type."""


def _represent_text(dumper: Any, text: str) -> yaml.ScalarNode:
    quoted = (text.lower() in BOOLEANS and text in (text.lower(), text.upper(), text.capitalize())) or (
        _is_number(text)
    )
    tag = yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG
    return dumper.represent_scalar(tag, text, style="'" if quoted else None)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_Dumper.add_representer(str, _represent_text)


def to_yaml(config: Any) -> str:
    """Return the text of `OmegaConf.to_yaml`, without secrets (see `redaction`).

    Args:
        config: a node, or plain values.
    """
    plain = OmegaConf.to_container(config, enum_to_str=True) if OmegaConf.is_config(config) else config
    return yaml.dump(
        redact(plain), Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False
    )
