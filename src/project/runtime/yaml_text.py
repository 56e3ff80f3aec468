"""Configurations as YAML text, by libyaml: OmegaConf's own writing takes five times as long."""

from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_omega_conf_dumper

from project.runtime.secrets import redact

try:
    from yaml import CSafeDumper as SafeDumper
except ImportError:  # PyYAML was built without libyaml
    from yaml import SafeDumper


class _Dumper(SafeDumper):  # type: ignore[misc]
    """Quotes, as OmegaConf's does, strings that would be read as something else."""


_Dumper.add_representer(str, get_omega_conf_dumper().str_representer)


def to_yaml(config: Any) -> str:
    """Write what `OmegaConf.to_yaml` writes, without secrets (see `redaction`).

    Args:
        config: a node, or plain values.
    """
    plain = OmegaConf.to_container(config, enum_to_str=True) if OmegaConf.is_config(config) else config
    return yaml.dump(
        redact(plain), Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False
    )
