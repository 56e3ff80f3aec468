"""Patch Hydra's internals; the only module that uses private names of Hydra.

Tested with hydra-core 1.3.8 and 1.4.0rc3, omegaconf 2.3.1 and 2.4.1rc1 (`benchmarks/newest_hydra.py`).
`PROJECT_PLAIN_HYDRA=1` disables the patches that only save time. Security and error messages have no switch.
"""

import argparse
import os
import shutil
import string
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, wraps
from pathlib import Path
from typing import Any

import hydra.utils
from hydra._internal import config_loader_impl
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.defaults_list import DefaultsList
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import get_args_parser
from hydra.core import utils
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.override_parser import overrides_parser
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from project.config import config_files
from project.errors import InputError
from project.runtime.text import short_name
from project.runtime.yaml_files import speed_up_omegaconf

__all__ = ["Callbacks"]

SWITCH = "PROJECT_PLAIN_HYDRA"
VERSION_BASE: dict[str, Any] = {} if hasattr(hydra.utils, "execution_whitelist") else {"version_base": "1.3"}
"""Argument of `hydra.main` and `initialize_config_dir`, which Hydra 1.4 deprecates and 1.3 requires."""
BUILT_IN_PLUGINS = "hydra._internal.core_plugins."
BASIC_LAUNCHER = f"{BUILT_IN_PLUGINS}basic_launcher.BasicLauncher"
MAX_HELP_COLUMNS = 120
LONGEST_DIRNAME = 240
"""Maximum bytes of a folder name made of overrides; the remaining 15 of 255 bytes keep names distinct."""


def compose_faster() -> None:
    """Halve the time of `--help` and save a fifth of the time of an error message; safe to call again.

    Hydra 1.3 composes the configuration once to detect a sweep, ignores any error, and composes it again. It
    copies its configuration sources to list the options of a group, and inspects the signatures of its
    override functions for each command line. The config store is a singleton and copies each configuration
    that it returns.
    """
    if os.environ.get(SWITCH):
        return
    ConfigStore.__deepcopy__ = lambda self, _: self  # type: ignore[attr-defined]
    if not VERSION_BASE:  # Hydra 1.4 and OmegaConf 2.4 do the rest themselves
        return
    Hydra.get_mode = _get_mode  # type: ignore[method-assign]
    ConfigLoaderImpl.get_group_options = _get_group_options  # type: ignore[method-assign]
    overrides_parser.create_functions = _create_functions
    speed_up_omegaconf()


_create_functions = cache(overrides_parser.create_functions)


def format_help() -> None:
    """Wrap the options of each group in `--help` at the width of the terminal; safe to call again."""
    Hydra.get_help = _get_help  # type: ignore[method-assign]


class _HelpParts(Mapping[str, str]):
    """Parts of a help text by name; builds only those that its template names."""

    def __init__(self, **parts: Callable[[], str]) -> None:
        self._parts = parts

    def __getitem__(self, name: str) -> str:
        return self._parts[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def _get_help(
    self: Hydra,
    help_cfg: DictConfig,
    cfg: DictConfig,
    args_parser: Any,
    resolve: bool,
    override_aliases: str = "",  # of Hydra 1.4
) -> str:
    width = min(shutil.get_terminal_size().columns, MAX_HELP_COLUMNS)

    def groups(*, of_hydra: bool) -> str:
        lines = self.format_config_groups(lambda name: name.startswith("hydra") == of_hydra).splitlines()
        return "\n".join(
            textwrap.fill(line, width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
            for line in lines
        )

    parts = _HelpParts(
        FLAGS_HELP=lambda: self.format_args_help(args_parser),
        HYDRA_CONFIG_GROUPS=lambda: groups(of_hydra=True),
        APP_CONFIG_GROUPS=lambda: groups(of_hydra=False),
        CONFIG=lambda: OmegaConf.to_yaml(cfg, resolve=resolve),
        OVERRIDE_ALIASES=lambda: override_aliases,
    )
    return string.Template(help_cfg.template).substitute(parts)


def _get_group_options(
    self: ConfigLoaderImpl,
    group_name: str,
    results_filter: ObjectType | None = ObjectType.CONFIG,
    config_name: str | None = None,
    overrides: list[str] | None = None,
) -> list[str]:
    repository: Any = self.repository
    if config_name or overrides:  # these may add folders to the search path
        _, repository = self._parse_overrides_and_create_caching_repo(config_name, overrides or [])
    options: list[str] = repository.get_group_options(group_name, results_filter)
    return options


def _get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> RunMode | None:
    config = self.compose_config(
        config_name=config_name,
        overrides=overrides,
        with_log_configuration=False,
        run_mode=RunMode.MULTIRUN,
        validate_sweep_overrides=False,
    )
    mode: RunMode | None = config.hydra.mode
    return mode


def check_compositions(check: Callable[[DictConfig], None]) -> None:
    """Check every composed configuration before Hydra instantiates any part of it.

    Safe to call again; the first check is kept.

    Args:
        check: raises an InputError for a forbidden value.
    """
    name = "_load_configuration" if hasattr(ConfigLoaderImpl, "_load_configuration") else "load_configuration"
    load = getattr(ConfigLoaderImpl, name)
    if hasattr(load, "__wrapped__"):
        return

    @wraps(load)
    def load_checked(*arguments: Any, **options: Any) -> DictConfig:
        try:
            config: DictConfig = load(*arguments, **options)
        except RecursionError as error:
            raise InputError(config_files.find_loop() or "the configuration is nested too deeply") from error
        check(config)
        set_override_dirname(config)
        return config

    setattr(ConfigLoaderImpl, name, load_checked)


def record_option_lists() -> None:
    """Add groups with several options (`logger=[csv,wandb]`) to `hydra.runtime.choices`, which omits them.

    Safe to call again.
    """
    create = config_loader_impl.create_defaults_list
    if hasattr(create, "__wrapped__"):
        return

    @wraps(create)
    def create_recorded(*arguments: Any, **options: Any) -> DefaultsList:
        made: DefaultsList = create(*arguments, **options)
        choices: dict[str, Any] = made.overrides.known_choices
        lists: dict[str, list[str]] = {}
        for default in made.defaults:
            group, _, option = (default.config_path or "").rpartition("/")
            is_included = (default.parent or "").startswith(f"{group}/")  # by another option of the group
            is_new = group and "/" not in group and group not in choices
            if is_new and not is_included:
                lists.setdefault(group, []).append(option)
        choices.update(lists)
        return made

    config_loader_impl.create_defaults_list = create_recorded


def check_search_paths(check: Callable[[ConfigSearchPath], None]) -> None:
    """Check every search path, and read its folders by `ConfigFolder`.

    Safe to call again; the first check is kept.

    Args:
        check: raises an InputError for a forbidden value.
    """
    initialize = ConfigRepository.initialize_sources
    if hasattr(initialize, "__wrapped__"):
        return

    @wraps(initialize)
    def initialize_checked(self: ConfigRepository, config_search_path: ConfigSearchPath) -> None:
        check(config_search_path)
        SourcesRegistry.instance().types["file"] = ConfigFolder
        config_files.set_searched(str(element.path) for element in config_search_path.get_path())
        initialize(self, config_search_path)

    ConfigRepository.initialize_sources = initialize_checked  # type: ignore[method-assign]


def save_records_with(save: Callable[[DictConfig, str, Path], None]) -> None:
    """Replace Hydra's writer of the files in `.hydra/`: a function (configuration, file name, folder)."""
    utils._save_config = save  # type: ignore[assignment]


class ConfigFolder(FileConfigSource):
    """Folder of configuration files; each is read once and checked by `config_files`."""

    def load_config(self, config_path: str) -> ConfigResult:
        name = self._normalize_file_name(config_path)
        file = Path(os.path.realpath(os.path.join(self.path, name)))
        config, text = config_files.load_for_hydra(name.removesuffix(".yaml"), file)
        header = self._get_header_dict(text)
        return ConfigResult(provider=self.provider, path=f"file://{self.path}", config=config, header=header)


def parse_command_line(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse arguments with Hydra's parser.

    Args:
        arguments: flags and overrides, in any order.

    Returns:
        Hydra's flags, with `overrides`, and a list of unknown flags.

    Raises:
        InputError: a flag lacks its value.
    """
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[assignment, method-assign]
    return parser.parse_known_intermixed_args(list(arguments))


def _refuse(message: str) -> None:
    raise InputError(f"{' '.join(message.split())}; --hydra-help lists the flags")


def allowing(targets: Iterable[str]) -> AbstractContextManager[Any]:
    """Return a context in which Hydra 1.4 instantiates only these targets; no effect in Hydra 1.3.

    Args:
        targets: dotted names, or `package.*`.
    """
    allow = getattr(hydra.utils, "execution_whitelist", None)
    return allow(sorted(set(targets))) if allow else nullcontext()


def make_loader(search_path: ConfigSearchPath) -> ConfigLoader:
    """Return Hydra's configuration loader for a search path."""
    return ConfigLoaderImpl(search_path)


def is_group(loader: ConfigLoader, name: str) -> bool:
    """Return True if a loader finds a group of this name."""
    assert isinstance(loader, ConfigLoaderImpl)
    return bool(loader.repository.group_exists(name))


def apply_overrides(overrides: Iterable[Override], config: DictConfig) -> None:
    """Set single values of a composed configuration as Hydra does.

    Args:
        overrides: parsed overrides of single values, not of groups.
        config: composed configuration, changed in place.
    """
    ConfigLoaderImpl._apply_overrides_to_config(list(overrides), config)


def set_override_dirname(config: DictConfig) -> None:
    """Set `hydra.job.override_dirname` to the joined overrides, shortened to a valid folder name.

    Args:
        config: composed configuration with Hydra's node, changed in place.
    """
    options = config.hydra.job.config.override_dirname
    typed: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)  # may hold ${…}
    lines = sorted(
        text.replace("=", options.kv_sep)
        for text in typed
        if text.partition("=")[0].lstrip("+~") not in options.exclude_keys
    )
    names = options.item_sep.join(lines).split("/")
    config.hydra.job.override_dirname = "/".join(short_name(name, LONGEST_DIRNAME) for name in names)


def make_job_return(overrides: Sequence[str], folder: str, value: Any, *, completed: bool) -> utils.JobReturn:
    """Return Hydra's record of a job, with its value or, if not `completed`, its error."""
    status = utils.JobStatus.COMPLETED if completed else utils.JobStatus.FAILED
    return utils.JobReturn(overrides=overrides, working_dir=folder, status=status, _return_value=value)


def outcome_of(result: utils.JobReturn) -> Any:
    """Return what a job returned, or its error. `JobReturn.return_value` would print and raise an error."""
    return result._return_value
