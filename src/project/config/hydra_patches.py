"""Habits of Hydra, OmegaConf and Lightning that users should not meet."""

import logging
import warnings
from functools import cache, lru_cache
from typing import Any

import yaml
from hydra._internal import config_loader_impl
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser import overrides_parser
from hydra.types import RunMode
from omegaconf import _utils as omegaconf_utils
from omegaconf import base, basecontainer, grammar_parser

from project.runtime.text import short_name

LONGEST_DIRNAME = 240
"""Bytes of a folder's name, before what tells it from others of the same name."""


def compose_faster() -> None:
    """Spare Hydra what it need not do to compose a configuration; may be called again.

    - It copies its store of configurations whenever it looks for a file or an option, 100 times for `--help`.
      The store is one for the process, and it copies each configuration that it hands out.
    - To know whether a command means a sweep it composes its configuration. A mistake that this shows is left
      to the next time.
    - It looks at the signatures of the functions of its overrides whenever it is about to parse some.
    - OmegaConf parses an expression such as `${data.path}` anew whenever it is asked for its value.
    - OmegaConf makes a class for each YAML file that it reads, on top of PyYAML's loader in pure Python.
    """
    ConfigStore.__deepcopy__ = lambda self, _: self  # type: ignore[attr-defined]
    Hydra.get_mode = _get_mode  # type: ignore[method-assign]
    overrides_parser.create_functions = _functions
    for module in (omegaconf_utils, basecontainer):
        module.get_yaml_loader = _yaml_loader  # type: ignore[attr-defined]
    for module in (omegaconf_utils, base):
        module.parse = _parse  # type: ignore[attr-defined]


_functions = cache(overrides_parser.create_functions)
_parse = lru_cache(maxsize=10_000)(grammar_parser.parse)


def _get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> RunMode | None:
    """As Hydra's own, which answers None to a configuration that cannot be composed."""
    return self.compose_config(
        config_name=config_name,
        overrides=overrides,
        with_log_configuration=False,
        run_mode=RunMode.MULTIRUN,
        validate_sweep_overrides=False,
    ).hydra.mode


_pure_loader = omegaconf_utils.get_yaml_loader


@cache
def _yaml_loader() -> type[Any]:
    """OmegaConf's loader, parsing by libyaml where PyYAML was built with it."""
    pure = _pure_loader()
    if not yaml.__with_libyaml__:
        return pure

    class Loader(yaml.cyaml.CParser, pure):  # type: ignore[misc, valid-type]
        def __init__(self, stream: Any) -> None:
            yaml.cyaml.CParser.__init__(self, stream)
            yaml.constructor.SafeConstructor.__init__(self)
            yaml.resolver.Resolver.__init__(self)

    return Loader


def shorten_names() -> None:
    """Have the folder that is named by overrides bear a name that file systems take; may be called again."""
    config_loader_impl.get_overrides_dirname = overrides_dirname


_overrides_dirname = config_loader_impl.get_overrides_dirname


def overrides_dirname(*arguments: Any, **options: Any) -> str:
    """As Hydra's own, each name in at most `LONGEST_DIRNAME` bytes."""
    names = _overrides_dirname(*arguments, **options).split("/")
    return "/".join(short_name(name, LONGEST_DIRNAME) for name in names)


def silence_libraries() -> None:
    """Keep off the screen what Lightning tells every user at every start, and what logging says of itself."""
    logging.raiseExceptions = False  # which prints a traceback for each line that a full disk did not take
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*is smaller than the logging interval.*",
        ".*LeafSpec.*",  # Lightning's own use of torch
        ".*across ranks is zero.*",  # there may be no validation images
        ".*your dataloader is not resumable.*",  # the data module keeps its place
        ".*`srun` command is available.*",  # a job of a sweep starts its ranks itself
        ".*requested to overfit.*",  # the order is that of the first epoch then
        ".*callbacks used to create the checkpoint.*",  # resumed runs show what changed themselves
        ".*sync_dist=True.*",  # our metrics are summed over the ranks before they are logged
    ):
        warnings.filterwarnings("ignore", message)
