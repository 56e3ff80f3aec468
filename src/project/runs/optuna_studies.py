"""Optuna storages, samplers and pruners by their names in configurations."""

import inspect
import random
import time
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
from optuna import pruners, samplers
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock, JournalRedisBackend

from project.errors import InputError, summarize
from project.runtime.extras import install_command
from project.runtime.output_files import refuse_unwritable_output
from project.runtime.text import did_you_mean

LOCK_S = 5
"""Age at which a journal's lock counts as left by a killed process [s]; a write takes a few ms."""
TABLES_S = 60.0
"""Timeout for other processes to make the tables of a new database [s]; usually a few tenths."""

SAMPLERS: Mapping[str, type[samplers.BaseSampler]] = {
    "tpe": samplers.TPESampler,
    "gp": samplers.GPSampler,
    "cmaes": samplers.CmaEsSampler,
    "qmc": samplers.QMCSampler,
    "random": samplers.RandomSampler,
    "brute_force": samplers.BruteForceSampler,
    "nsgaii": samplers.NSGAIISampler,
    "nsgaiii": samplers.NSGAIIISampler,
}
REQUIRED_PACKAGES = {"gp": "scipy", "cmaes": "cmaes", "qmc": "scipy"}
"""Packages that samplers import only during a search."""


def patient_pruner(
    patience: int,
    wrapped: str = "none",
    wrapped_options: Mapping[str, Any] | None = None,
    min_delta: float = 0.0,
) -> pruners.PatientPruner:
    """Make a pruner that waits for `patience` epochs without improvement, then follows another pruner.

    Args:
        patience: number of epochs.
        wrapped: name of the other pruner in `PRUNERS`; `none` prunes after the patience.
        wrapped_options: arguments of the other pruner's constructor.
        min_delta: smallest difference that counts as an improvement.
    """
    inner = None if wrapped == "none" else make_pruner(wrapped, wrapped_options or {})
    return pruners.PatientPruner(inner, patience, min_delta)


PRUNERS: Mapping[str, Callable[..., pruners.BasePruner]] = {
    "none": pruners.NopPruner,
    "median": pruners.MedianPruner,
    "percentile": pruners.PercentilePruner,
    "hyperband": pruners.HyperbandPruner,
    "successive_halving": pruners.SuccessiveHalvingPruner,
    "threshold": pruners.ThresholdPruner,
    "patient": patient_pruner,
}
"""Pruners by name. Optuna's WilcoxonPruner is no choice: its steps are instances of a problem, not epochs."""

JOURNAL = "journal:"
"""URL scheme of a journal file, which also works on network file systems."""
FILE_SCHEMES = (JOURNAL, "sqlite:///")
REDIS = f"{JOURNAL}redis://"
"""URL scheme of a journal on a Redis server."""


def silence_optuna() -> None:
    """Silence Optuna's messages and experimental warnings."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def refuse_unwritable_storage(url: str) -> None:
    """Refuse a storage whose file cannot be written.

    Raises:
        InputError: the file cannot be written.
    """
    if (file := _file_of(url)) is not None:
        refuse_unwritable_output(f"hydra.sweeper.storage={url}", file)


def _file_of(url: str) -> Path | None:
    if url.startswith(REDIS):
        return None
    path = next((url.removeprefix(start) for start in FILE_SCHEMES if url.startswith(start)), "")
    return Path(path.partition("?")[0]) if path and not path.startswith(":") else None


def absolute_url(url: str) -> str:
    """Return a storage's URL with an absolute path, for processes in other working directories."""
    for start in () if url.startswith(REDIS) else FILE_SCHEMES:
        if url.startswith(start) and not (path := url.removeprefix(start)).startswith((":", "/")):
            return f"{start}{Path(path).absolute()}"
    return url


def open_storage(url: str) -> BaseStorage:
    """Open a storage.

    Args:
        url: `journal:FILE`, `journal:redis://…`, or a URL for SQLAlchemy, such as sqlite:///FILE or
            postgresql://….

    Raises:
        InputError: the storage cannot be opened.
    """
    try:
        if (file := _file_of(url)) is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        if url.startswith(REDIS):
            return JournalStorage(JournalRedisBackend(url.removeprefix(JOURNAL)))
        if url.startswith(JOURNAL):
            path = url.removeprefix(JOURNAL)
            lock = JournalFileSymlinkLock(path, grace_period=LOCK_S)
            return JournalStorage(JournalFileBackend(path, lock_obj=lock))
        return _open_database(url)
    except Exception as error:  # any database driver may raise its own
        raise InputError(
            f"hydra.sweeper.storage={url}: cannot be opened ({summarize(error)}); give {JOURNAL}FILE, "
            "sqlite:///FILE or another URL for SQLAlchemy"
        ) from error


def _open_database(url: str) -> BaseStorage:
    """Open a database; retry while other processes make its tables."""
    from sqlalchemy.exc import DBAPIError, IntegrityError  # takes 0.4 s; journal files do not need it

    deadline = time.monotonic() + TABLES_S
    while True:
        try:
            return optuna.storages.get_storage(url)
        except DBAPIError as error:
            is_race = isinstance(error, IntegrityError) or "already exists" in str(error)
            if not is_race or time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0.05, 0.2))  # noqa: S311 (spreads the retries of several processes)


def make_sampler(name: str, options: Mapping[str, Any], seed: int | None) -> samplers.BaseSampler:
    """Make a sampler of `SAMPLERS`, with the seed if it takes one.

    Raises:
        InputError: unknown name or option.
    """
    seeded = {"seed": seed, **options} if "seed" in _parameters(SAMPLERS.get(name)) else dict(options)
    return _make("sampler", SAMPLERS, name, seeded)


def make_pruner(name: str, options: Mapping[str, Any]) -> pruners.BasePruner:
    """Make a pruner of `PRUNERS`.

    Raises:
        InputError: unknown name or option.
    """
    return _make("pruner", PRUNERS, name, options)


def _make(kind: str, known: Mapping[str, Callable[..., Any]], name: str, options: Mapping[str, Any]) -> Any:
    key = f"hydra.sweeper.{kind}"
    if name not in known:
        raise InputError(f"{key}={name}: {did_you_mean(name, known)}")
    allowed = _parameters(known[name])
    if wrong := [option for option in options if option not in allowed]:
        raise InputError(
            f"{key}_options.{wrong[0]}: {name} has no such option; {did_you_mean(wrong[0], allowed)}"
        )
    if (package := REQUIRED_PACKAGES.get(name)) and find_spec(package) is None:
        raise InputError(f"{key}={name}: needs {package}; run {install_command('search')}")
    try:
        return known[name](**options)
    except InputError:  # of a wrapped pruner
        raise
    except (TypeError, ValueError, ImportError) as error:
        raise InputError(f"{key}={name} {key}_options={dict(options)}: {error}") from error


def _parameters(made: Callable[..., Any] | None) -> list[str]:
    return [] if made is None else [name for name in inspect.signature(made).parameters if name != "self"]
