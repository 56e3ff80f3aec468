"""Explain Hydra's errors about keys and options, with the most similar names of the configuration files."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from project.config.config_files import location
from project.config.hydra_patches import VERSION_BASE
from project.config.signatures import Signature, signature_of
from project.errors import InputError, one_line
from project.runs.migrations import new_name
from project.runtime.text import did_you_mean
from project.runtime.yaml_files import display_path, loaded_files, raw_child, search_folders

NO_OPTION = re.compile(r"Could not (?:find|load) '([^']+)'")
NO_GROUP = re.compile(r"In '[^']+': Could not override '([^']+)'")
TWO_VALUES = re.compile(r"Multiple values for (\S+)\. To override a value use 'override (\S+: \S+)'")
IN_FILE = re.compile(r"(?:\bIn|defined in) '?([^':]+)'?(?:: (.*))?$")
"""Message of Hydra about an invalid defaults list."""
HYDRA_KEYS = tuple(HydraConf.__dataclass_fields__)
SWEEP = re.compile(r"([^=]+)=(\w+)\(.*\)")
SWEEPS = {
    "choice": "choice(1,2)",
    "range": "range(1,9,2)",
    "interval": "interval(0.1,1)",
    "glob": "glob(*)",
    "tag": "tag(log,interval(0.1,1))",
    "sort": "sort(3,1,2)",
    "shuffle": "shuffle(1,2,3)",
}
"""Example of each sweep function of Hydra's override grammar."""
HYDRA_OPTION = re.compile(
    r"Could not find '(hydra/\w+)/(\w+)' Available options in '\S+': (.*) Config search"
)
"""Message of Hydra about an unknown option of its own groups."""


def explain_composition(
    error: BaseException, overrides: Sequence[str], conf: Path | None, config_name: str
) -> list[str]:
    """Return a line for each override with an unknown key or option, with the most similar name.

    Args:
        error: exception that Hydra raised.
        overrides: overrides of the command line, without flags.
        conf: configuration folder; None: only the message of the exception is returned.
        config_name: name of the primary configuration.
    """
    general = [one_line(error)]
    if conf is None:
        return general
    parsed: list[Override] = []
    for text in overrides:
        try:
            parsed.append(OverridesParser.create().parse_override(text))
        except HydraException:
            if (found := SWEEP.fullmatch(text)) and found[2] in SWEEPS:
                return [f"{text}: invalid arguments of {found[2]}; for example {found[1]}={SWEEPS[found[2]]}"]
            if quoted := _quoted(text):
                return [f"{text}: Hydra cannot parse this value; quote it: {shlex.quote(quoted)}"]
            return [
                f"{text}: not an override; write key=value, and quote values with spaces or = : 'key=\"a=b\"'"
            ]
    if found := HYDRA_OPTION.search(general[0]):
        group, value, known_options = found.groups()
        where = "" if f"{group}={value}" in overrides else _place(value)
        return [f"{where}{group}={value}: no such option; {did_you_mean(value, known_options.split())}"]
    if general[0].startswith(("Ambiguous value", "Sweep parameters")):
        return [
            f"{override.input_line}: several values start a sweep, which needs -m; write a list as "
            f"{override.key_or_group}=[a,b]"
            for override in parsed
            if override.is_sweep_override()
        ]
    groups = [
        override
        for override in parsed
        if options(conf, override.key_or_group) or override.key_or_group.startswith("hydra/")
    ]
    lines = [line for override in groups if (line := _explain_option(override, conf))]
    lines += [
        f"{override.input_line}: the group already exists; write it without +"
        for override in groups
        if override.is_add() and "more than once" in general[0]
    ]
    if lines := lines or list(filter(None, [_explain_file(error, general[0], conf)])):
        return lines
    try:
        known = _compose(conf, config_name, groups)
    except InputError as refused:  # a mistake in a file that Hydra has not reached
        return str(refused).splitlines()
    if known is None:
        return general
    targets = {
        one.key_or_group.removesuffix("._target_"): str(one.value())
        for one in parsed
        if one.key_or_group.endswith("._target_") and not one.is_delete()
    }
    explained = (explain_key(one, known, conf, targets) for one in parsed if one not in groups)
    return list(filter(None, explained)) or general


def _explain_file(error: BaseException, message: str, conf: Path) -> str:
    """Return a line with the file and line of a mistake; empty if the mistake is on the command line."""
    if found := NO_OPTION.search(message):
        group, _, option = found[1].rpartition("/")
        if where := _place(option):
            return f"{where}{group}={option}: {_no_option(conf, group, option)}"
    elif found := NO_GROUP.search(message):
        if where := _place(found[1]):
            return f"{where}{found[1]}: no such group; {did_you_mean(found[1], _groups(conf))}"
    elif found := TWO_VALUES.search(message):
        if where := _place(f"/{found[1]}"):
            return f"{where}{found[1]}: is already in the defaults list; write override /{found[2]}"
    elif (key := _key_of(error)) and (where := _place(key)):
        parent, _, name = key.rpartition(".")
        if parent == "hydra":
            return f"{where}{key}: no such key; {did_you_mean(name, HYDRA_KEYS, 'hydra.')}"
        return f"{where}{key}: {message}"
    elif (found := IN_FILE.search(message)) and found[1] in loaded_files:
        file = loaded_files[found[1]]
        word = next((word for word in ("hydra.searchpath", "_self_") if word in message), "")
        return f"{location(file, word) or f'{display_path(file)}: '}{found[2] or message}"
    return ""


def _place(word: str) -> str:
    """Return the location of a key or option in the last of the read files that contains it."""
    return next(filter(None, (location(file, word) for file in reversed(loaded_files.values()))), "")


def _key_of(error: BaseException) -> str:
    """Return the key in a message of OmegaConf; empty if there is none."""
    found = re.search(r"full_key: (\S+)", str(error))
    return found[1] if found else ""


def _groups(conf: Path) -> list[str]:
    """Return all configuration groups, including nested ones."""
    return [
        folder.relative_to(top).as_posix()
        for top in dict.fromkeys([conf, *search_folders])
        for folder in sorted(top.rglob("*"))
        if folder.is_dir()
    ]


def _no_option(conf: Path, group: str, option: str) -> str:
    """Return the reason why a group has no such option, with the most similar one."""
    for folder in dict.fromkeys([conf, *search_folders]) if ".." not in option else ():
        file = folder / group / f"{option}.yaml"
        if file.exists() or file.is_symlink():
            return f"{display_path(file)} is not a readable file"
        if file.with_suffix(".yml").exists():
            return f"{display_path(file.with_suffix('.yml'))} is ignored by Hydra; rename it to .yaml"
    if today := new_name(f"{group}={option}"):
        return f"`{group}={option}` is now `{today}`"
    if not (known := options(conf, group)):
        return f"no such group; {did_you_mean(group, _groups(conf))}"
    return f"no such option; {did_you_mean(option, known)}"


def _quoted(text: str) -> str:
    """Return an override with its value in quotes; empty if quotes do not make it valid."""
    key, sign, value = text.partition("=")
    quoted = f'{key}{sign}"{value}"'
    if not sign or not value or any(character in value for character in "[](){}'\"\\="):
        return ""
    try:
        OverridesParser.create().parse_override(quoted)
    except HydraException:
        return ""
    return quoted


def options(conf: Path, group: str) -> list[str]:
    """Return the options of a configuration group; empty if there is no such group.

    Args:
        conf: configuration folder; the other folders of the search path are included.
        group: path of the group.
    """
    if group.startswith("hydra"):
        return []
    folders = [folder / group for folder in (conf, *search_folders)]
    return sorted({file.stem for folder in folders for file in folder.glob("*.yaml") if file.is_file()})


def _explain_option(override: Override, conf: Path) -> str:
    group = override.key_or_group
    known = options(conf, group)
    if override.is_delete() or not known:
        return ""
    values = override.value() if not override.is_sweep_override() else list(override.sweep_iterator())
    for value in values if isinstance(values, list) else [values]:
        files = [
            folder / group / f"{str(value).removesuffix('.yaml')}.yaml" for folder in (conf, *search_folders)
        ]
        there = ".." not in str(value) and any(file.is_file() for file in files)
        if value is not None and not there:
            return f"{group}={value}: {_no_option(conf, group, str(value))}"
    return ""


def explain_key(
    override: Override, known: DictConfig, conf: Path, targets: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Return a line about a key that `known` lacks, with the most similar name; empty if the key exists.

    Args:
        override: sets the key.
        known: configuration without this override.
        conf: folder of configuration files.
        targets: classes that other overrides name, by group.
    """
    key = override.key_or_group
    if override.is_add() and not override.is_force_add() and OmegaConf.select(known, key) is not None:
        return f"{override.input_line}: {key} already exists; write it without +"
    if override.is_add() or (key.startswith("hydra") and "hydra" not in known):
        return ""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(known, parent, throw_on_missing=False) if parent else known
    while parent and node is None:  # the mistyped part may be a parent key
        parent, _, name = parent.rpartition(".")
        node = OmegaConf.select(known, parent, throw_on_missing=False) if parent else known
    if not isinstance(node, DictConfig):
        return f"{override.input_line}: no key {parent}.{name}; {parent} is a single value"
    if name in node or OmegaConf.is_missing(node, name):
        return ""
    if today := new_name(key):
        return f"{override.input_line}: `{key}` is now `{today}`"
    candidates = [str(candidate) for candidate in node if not str(candidate).startswith("_")]
    if not parent:
        candidates += [group for group in _groups(conf) if "/" not in group]
    wanted = f"{parent}.{name}" if parent else name
    signature = signature_of(targets[parent]) if parent in targets else None
    if isinstance(signature, Signature) and name in signature.arguments:
        return f"{override.input_line}: no key {wanted}; add it as +{override.input_line}"
    if isinstance(signature, Signature) and signature.arguments and not signature.anything:
        candidates = list(signature.arguments)
    hint = did_you_mean(name, dict.fromkeys(candidates), f"{parent}." if parent else "")
    if parent and not candidates:
        hint = f"write +{override.input_line} to give the class an argument"
    if not parent and (deeper := _keys_named(known, name)):
        hint = f"did you mean {' or '.join(deeper)}?"
    return f"{override.input_line}: no key {wanted}; {hint}"


def _keys_named(known: DictConfig, name: str) -> list[str]:
    """Return the dotted keys of groups that contain `name`."""
    return [
        f"{group!s}.{name}"
        for group in known
        if isinstance(node := raw_child(known, group), DictConfig) and name in node
    ]


def _compose(conf: Path, config_name: str, groups: Sequence[Override]) -> DictConfig | None:
    # Only the first option of a sweep is composed.
    lines = [re.sub(r",.*", "", override.input_line or "") for override in groups]
    others = [str(folder.absolute()) for folder in search_folders if folder.is_dir()]
    if others := [folder for folder in others if folder != str(conf.absolute())]:
        lines.append(f"hydra.searchpath={json.dumps(others)}")
    earlier = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf.absolute()), **VERSION_BASE):
            return compose(config_name, lines, return_hydra_config=True)
    except HydraException:
        return None
    finally:
        GlobalHydra.instance().hydra = earlier
