"""Check the objects that Hydra itself instantiates: callbacks, plugins and log handlers.

Hydra's own node names callbacks, plugins and log handlers, sets environment variables and adds configuration
folders. Each of these could run code or disable checks.
"""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, TextIO

from hydra.core.config_search_path import ConfigSearchPath
from omegaconf import DictConfig, OmegaConf

from project.config import config_files, hydra_patches
from project.config.allowed_targets import find, plain_values
from project.errors import InputError
from project.runs.migrations import new_name, old_keys
from project.runtime import secrets, yaml_files
from project.runtime.atomic_files import replace_text
from project.runtime.yaml_files import to_yaml

CALLBACKS = ("project.config.preflight.Preflight",)
PLUGINS = ("hydra_plugins.", hydra_patches.BUILT_IN_PLUGINS)
"""Packages of launchers and sweepers."""

HANDLERS = frozenset(
    {
        *("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler"),
        *("logging.handlers.RotatingFileHandler", "logging.handlers.TimedRotatingFileHandler"),
        *("logging.handlers.WatchedFileHandler", "logging.Formatter", "colorlog.ColoredFormatter"),
        "project.runtime.atomic_files.LogFile",
        "project.runtime.atomic_files.ScreenLog",
    }
)
"""Log handlers and formatters that a configuration may name."""
BUILT_BY_HYDRA = (*CALLBACKS, *HANDLERS, *(f"{package}*" for package in PLUGINS))
"""Targets that Hydra itself may instantiate."""
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")

VARIABLES = frozenset(
    {
        *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_PROC_BIND", "TZ"),
        *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG"),
        *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "WANDB_MODE"),
        *("NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "NCCL_IB_DISABLE", "NCCL_P2P_DISABLE", "GLOO_SOCKET_IFNAME"),
    }
)
"""Environment variables that a configuration may set; none of them selects code to load."""

SWITCHES = ("HYDRA_INSTANTIATE_ALLOWLIST_OVERRIDE", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
"""Environment variables that disable checks of Hydra and torch."""


def install() -> None:
    """Check each composition, keep secrets out of files and logs, and unpickle only plain values with torch.

    Safe to call again.
    """
    for name in SWITCHES:
        os.environ.pop(name, None)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # also for pretrained weights of torchvision
    logging.setLogRecordFactory(WithoutSecrets)
    for stream in (sys.stdout, sys.stderr):
        _hide_secrets(stream)
    hydra_patches.save_records_with(_save_without_secrets)
    hydra_patches.record_option_lists()
    hydra_patches.check_compositions(check_composition)
    hydra_patches.check_search_paths(check_search_path)


class WithoutSecrets(logging.LogRecord):
    """Log record with secrets redacted in message, traceback and stack."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.exc_info:  # formatters prefer this text
            self.exc_text = secrets.redact_text(logging.Formatter().formatException(self.exc_info))
        if self.stack_info:
            self.stack_info = secrets.redact_text(self.stack_info)

    def getMessage(self) -> str:  # noqa: N802
        """Return the message with secrets redacted."""
        return secrets.redact_text(super().getMessage())


def _hide_secrets(stream: TextIO | None) -> None:
    """Redact secrets in printed text; output of C libraries is not covered."""
    if stream is None or hasattr(
        stream.write, "__wrapped__"
    ):  # None: stream closed before the process started
        return
    write = stream.write

    @wraps(write)
    def hiding(text: str) -> int:
        write(secrets.redact_text(text))
        return len(text)

    stream.write = hiding  # type: ignore[method-assign]


def _save_without_secrets(config: DictConfig, filename: str, output_dir: Path) -> None:
    output_dir.mkdir(parents=True, exist_ok=True)
    replace_text(output_dir / filename, to_yaml(config))


def check_composition(config: DictConfig) -> None:
    """Note the secrets of a composed configuration, and refuse objects that Hydra may not instantiate.

    Raises:
        InputError: one line for each value that is not allowed.
    """
    secrets.remember_all(config)
    plain: Any = OmegaConf.to_container(config)
    if old := next(old_keys(plain), ""):
        place = next(
            filter(None, (config_files.location(file, old) for file in yaml_files.loaded_files.values())), ""
        )
        raise InputError(f"{place}`{old}` is now `{new_name(old)}`; rename the key")
    if problems := dict.fromkeys(find_refusals(config)):
        raise InputError("\n".join(problems))


def check_search_path(search_path: ConfigSearchPath) -> None:
    """Refuse configuration folders that do not exist, and packages that the search would import.

    Raises:
        InputError: for the first such entry.
    """
    for element in search_path.get_path():
        scheme, _, package = str(element.path).partition("://")
        package = package.replace("/", ".")
        if scheme == "pkg" and package.partition(".")[0] not in ("hydra", "hydra_plugins", ""):
            raise InputError(f"hydra.searchpath: pkg://{package} would be imported; give file://FOLDER")
        is_folder = scheme in ("file", str(element.path))
        if (
            is_folder
            and str(element.provider).startswith("hydra.searchpath")
            and not Path(str(element.path).removeprefix("file://")).is_dir()
        ):
            raise InputError(f"hydra.searchpath: no such folder {element.path}; name one that exists")


def find_refusals(config: DictConfig) -> Iterator[str]:
    """Yield a line for each forbidden value in Hydra's node of a composed configuration."""
    for key in ("hydra.callbacks", "hydra.launcher", "hydra.sweeper"):
        yield from _targets(key, plain_values(config, key))
    for key in ("hydra.job_logging", "hydra.hydra_logging"):
        yield from _logging(key, plain_values(config, key))
    variables = plain_values(config, "hydra.job.env_set") or {}
    for name in variables if isinstance(variables, Mapping) else ():
        if str(name) not in VARIABLES:
            yield f"hydra.job.env_set.{name}: not allowed; set the variable in the shell before the command"


def _targets(key: str, plain: Any) -> Iterator[str]:
    for found in find(plain, key):
        name = str(found.name)
        if found.key == f"{key}._target_" and key != "hydra.callbacks" and name.startswith(PLUGINS):
            continue
        if key == "hydra.callbacks" and name in CALLBACKS:
            continue
        allowed = (
            ", ".join(CALLBACKS) if key == "hydra.callbacks" else "a plugin of the package hydra_plugins"
        )
        yield f"{found.key}={name}: not allowed; leave it out, or name {allowed}"


def _logging(key: str, plain: Any) -> Iterator[str]:
    """Yield a line for each forbidden class and stream of a logging configuration."""
    if isinstance(plain, Mapping):
        for name, child in plain.items():
            if name in ("()", "class") and str(child) not in HANDLERS:
                yield f"{key}.{name}={child}: not allowed; choose from {', '.join(sorted(HANDLERS))}"
            yield from _logging(f"{key}.{name}", child)
    elif isinstance(plain, list):
        for child in plain:
            yield from _logging(key, child)
    elif isinstance(plain, str) and plain.startswith(("ext://", "cfg://")) and plain not in STREAMS:
        yield f"{key}={plain}: not allowed; choose from {', '.join(STREAMS)}"
