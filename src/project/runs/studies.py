"""Optuna's storages, samplers and pruners, by the names that configurations use."""

import inspect
import random
import time
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from project.errors import InputError, summarize
from project.runtime.text import did_you_mean
from project.runtime.write_probe import refuse_unwritable_output

LOCK_S = 5
"""Seconds after which the lock of a journal counts as left by a killed process; a write takes few ms."""
MADE_BY_OTHERS_S = 10.0
"""Seconds that other processes may need to make the tables of a new database; it takes them some tenths."""

SAMPLERS: Mapping[str, type[BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "gp": optuna.samplers.GPSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "qmc": optuna.samplers.QMCSampler,
    "random": optuna.samplers.RandomSampler,
    "brute_force": optuna.samplers.BruteForceSampler,
    "nsgaii": optuna.samplers.NSGAIISampler,
    "nsgaiii": optuna.samplers.NSGAIIISampler,
}

NEEDS = {"gp": "scipy", "cmaes": "cmaes", "qmc": "scipy"}
"""Packages without which a sampler finds out in the middle of a search that it cannot go on."""

PRUNERS: Mapping[str, type[BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
    "threshold": optuna.pruners.ThresholdPruner,
}

JOURNAL = "journal:"
"""What the address of a journal file begins with; it works on network file systems too."""
FILES = (JOURNAL, "sqlite:///")
"""Beginnings of addresses of files."""


def silence() -> None:
    """Keep Optuna's own lines off the screen: the sweep tells what happens."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def refuse_unwritable_storage(url: str) -> None:
    """Make sure that the file of a storage can be written, where the storage is a file.

    Raises:
        InputError: the file cannot be written.
    """
    if (file := _file_of(url)) is not None:
        refuse_unwritable_output(f"hydra.sweeper.storage={url}", file)


def _file_of(url: str) -> Path | None:
    """The file of a storage; None for databases without one."""
    path = next((url.removeprefix(start) for start in FILES if url.startswith(start)), "")
    return Path(path.partition("?")[0]) if path and not path.startswith(":") else None


def absolute(url: str) -> str:
    """A storage's address with an absolute path, for processes in other working directories."""
    for start in FILES:
        if url.startswith(start) and not (path := url.removeprefix(start)).startswith((":", "/")):
            return f"{start}{Path(path).absolute()}"
    return url


def open_storage(url: str) -> BaseStorage:
    """Open a storage.

    Args:
        url: `journal:FILE`, or what SQLAlchemy takes, such as sqlite:///FILE or postgresql://….

    Raises:
        InputError: there is none, or it cannot be reached.
    """
    try:
        if (file := _file_of(url)) is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        if url.startswith(JOURNAL):
            file = Path(url.removeprefix(JOURNAL))
            lock = JournalFileSymlinkLock(str(file), grace_period=LOCK_S)
            return JournalStorage(JournalFileBackend(str(file), lock_obj=lock))
        return _open_database(url)
    except Exception as error:  # of whichever database driver
        raise InputError(
            f"hydra.sweeper.storage={url}: cannot be opened ({summarize(error)}); give {JOURNAL}FILE, "
            "sqlite:///FILE or another address that SQLAlchemy takes"
        ) from error


def _open_database(url: str) -> BaseStorage:
    """Open a database, and again while other processes make the tables that it lacks."""
    from sqlalchemy.exc import DBAPIError, IntegrityError  # 0.4 s that journal files do without

    deadline = time.monotonic() + MADE_BY_OTHERS_S
    while True:
        try:
            return optuna.storages.get_storage(url)
        except DBAPIError as error:
            raced = isinstance(error, IntegrityError) or "already exists" in str(error)
            if not raced or time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0.05, 0.2))  # noqa: S311 (apart from the others)


def make_sampler(name: str, options: Mapping[str, Any], seed: int | None) -> BaseSampler:
    """Make a sampler.

    Args:
        name: a key of `SAMPLERS`.
        options: of its constructor.
        seed: of its draws, for those that draw.

    Raises:
        InputError: unknown name or option.
    """
    seeded = {"seed": seed, **options} if "seed" in _options(SAMPLERS.get(name)) else dict(options)
    return _make("sampler", SAMPLERS, name, seeded)


def make_pruner(name: str, options: Mapping[str, Any]) -> BasePruner:
    """Make a pruner.

    Args:
        name: a key of `PRUNERS`.
        options: of its constructor.

    Raises:
        InputError: unknown name or option.
    """
    return _make("pruner", PRUNERS, name, options)


def _make(kind: str, known: Mapping[str, type[Any]], name: str, options: Mapping[str, Any]) -> Any:
    key = f"hydra.sweeper.{kind}"
    if name not in known:
        raise InputError(f"{key}={name}: {did_you_mean(name, known)}")
    allowed = _options(known[name])
    if wrong := [option for option in options if option not in allowed]:
        raise InputError(f"{key}_options.{wrong[0]}: {name} has none; {did_you_mean(wrong[0], allowed)}")
    if (package := NEEDS.get(name)) and find_spec(package) is None:
        raise InputError(
            f"{key}={name}: needs {package}; uv sync --extra search / pip install 'project[search]'"
        )
    try:
        return known[name](**options)
    except (TypeError, ValueError, ImportError) as error:
        raise InputError(f"{key}={name} {key}_options={dict(options)}: {error}") from error


def _options(made: type[Any] | None) -> list[str]:
    return [] if made is None else [name for name in inspect.signature(made).parameters if name != "self"]
