"""Base class of loggers that send a run to a tracking service, and their calls during a run."""

import json
import logging
import shlex
import sys
import time
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from project.errors import summarize
from project.runs.run_folder import RunFolder
from project.runs.sweep_folder import SweepFolder, find_sweep
from project.runtime.atomic_files import replace_text
from project.runtime.secrets import redact_text

if TYPE_CHECKING:
    import PIL.Image

log = logging.getLogger(__name__)

RUN_IDS = "tracking.json"
"""File of a run folder with the run's id in each service; a resumed run continues under the same ids."""
CONFIG_FILE = "run_config.yaml"
"""File of the configuration; W&B writes hyperparameters to config.yaml."""
RETRY_S = 30.0
"""Time between two attempts to reach a service that failed, s."""
MAX_ATTEMPTS = 10
"""Attempts after which a single call is dropped, because the service rejects it."""
MAX_PENDING = 10_000
"""Calls that are kept while a service fails; later calls are dropped."""
CLOSE_S = 30.0
"""Time for the remaining calls when a run ends, s."""


@runtime_checkable
class VisualLogger(Protocol):
    """Logger that takes images, tables, the network and embeddings in addition to scalars."""

    def save(self) -> None:
        """Write or send what is pending."""

    def log_image(self, tag: str, image: "PIL.Image.Image", step: int) -> None:
        """Log an image."""

    def log_markdown(self, tag: str, text: str, step: int) -> None:
        """Log a text in Markdown."""

    def log_network(self, network: nn.Module, run: Callable[[], Any], images: Tensor) -> None:
        """Log a network, given a function that calls it with `images` (B, C, H, W)."""

    def log_embeddings(
        self, tag: str, points: Tensor, columns: Sequence[str], rows: Sequence[Sequence[str]], images: Tensor
    ) -> None:
        """Log embeddings (N, D) with metadata `rows`, named by `columns`, and images (N, C, H, W), uint8."""


class Unavailable:
    """Object whose methods do nothing, in place of a service that cannot be reached."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return _do_nothing


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    """Accept any arguments."""


class TrackingLogger(Logger):
    """Logger that sends metrics, hyperparameters, configuration, images and weights to a tracking service.

    Only rank 0 sends. Connecting waits for the first call. A failure of the service does not stop the run: it
    is logged once, and calls are kept in memory and repeated every `RETRY_S` seconds.

    Derived classes implement the methods `send_…`, `open_run` and `close_run`, which may raise any exception.

    Args:
        folder: run folder.
        log_checkpoint: send the best checkpoint when the run ends.
    """

    SERVICE: ClassVar[str]
    """Name of the service: key in the group `logger` and in `tracking.json`."""
    REQUIREMENTS: ClassVar[Mapping[str, Any]]
    """Package, extra and credentials, which are checked before the run starts (see `validation.loggers`)."""

    def __init__(self, folder: str, log_checkpoint: bool) -> None:
        super().__init__()
        self._begin(folder, log_checkpoint)

    def _begin(self, folder: str, log_checkpoint: bool) -> None:
        self.folder = Path(folder)
        self.sends_checkpoint = log_checkpoint
        self._pending: deque[Callable[[], None]] = deque()
        self._attempts = 0  # of the first pending call
        self._failure = ""  # reason of the last failure; empty after a success
        self._failed_at = 0.0
        self._num_dropped = 0
        self._is_open = False
        self.remote: Any = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return the service's own object; while the service fails, an object whose methods do nothing."""
        if not self._is_open:
            self._send(_do_nothing)
        return self.remote if self._is_open else Unavailable()

    def open_run(self) -> None:
        """Create the run in the service, or continue the run with the id of `recorded_id`; set `remote`."""
        raise NotImplementedError

    def send_metrics(self, metrics: dict[str, float], step: int, time_s: float) -> None:
        """Send scalars of a step; `time_s` is their time in seconds since the epoch."""
        raise NotImplementedError

    def send_hyperparameters(self, values: dict[str, Any]) -> None:
        """Send hyperparameters by dotted name."""
        raise NotImplementedError

    def send_text(self, name: str, text: str) -> None:
        """Send a text file."""
        raise NotImplementedError

    def send_image(self, tag: str, image: "PIL.Image.Image", step: int) -> None:
        """Send an image."""
        raise NotImplementedError

    def send_embeddings(
        self, tag: str, points: Tensor, columns: Sequence[str], rows: Sequence[Sequence[str]], images: Tensor
    ) -> None:
        """Send embeddings (see `VisualLogger`); services without a page for them ignore the call."""

    def send_checkpoint(self, path: Path) -> None:
        """Send a checkpoint file."""
        raise NotImplementedError

    def close_run(self, state: str) -> None:
        """Close the run with its state: done, pruned, paused, failed or interrupted."""
        raise NotImplementedError

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        self._send(partial(self.send_metrics, values, step or 0, time.time()))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        values = params if isinstance(params, dict) else vars(params)
        self._send(partial(self.send_hyperparameters, dict(values)))

    @rank_zero_only
    def log_config(self, text: str) -> None:
        """Send the configuration as a text file."""
        self._send(partial(self.send_text, CONFIG_FILE, text))

    @rank_zero_only
    def log_image(self, tag: str, image: "PIL.Image.Image", step: int) -> None:
        self._send(partial(self.send_image, tag, image, step))

    @rank_zero_only
    def log_markdown(self, tag: str, text: str, step: int) -> None:
        self._send(partial(self.send_text, f"{tag}.md", text))

    @rank_zero_only
    def log_network(self, network: nn.Module, run: Callable[[], Any], images: Tensor) -> None:
        self._send(partial(self.send_text, "network.txt", str(network)))

    @rank_zero_only
    def log_embeddings(
        self, tag: str, points: Tensor, columns: Sequence[str], rows: Sequence[Sequence[str]], images: Tensor
    ) -> None:
        self._send(partial(self.send_embeddings, tag, points, columns, rows, images))

    @rank_zero_only
    def log_checkpoint(self, path: Path) -> None:
        """Send the best checkpoint, unless `log_checkpoint` is false."""
        if self.sends_checkpoint:
            self._send(partial(self.send_checkpoint, path))

    @rank_zero_only
    def save(self) -> None:
        self._flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send what is pending. The run stays open: validation and test log to it after training."""
        self._flush()

    @rank_zero_only
    def close(self, state: str) -> None:
        """Send what is pending within `CLOSE_S` seconds, and close the run.

        Args:
            state: done, pruned, paused, failed or interrupted.
        """
        if not self._is_open and not self._pending:
            return
        self._pending.append(partial(self.close_run, state))
        self._flush(deadline=time.monotonic() + CLOSE_S)
        if lost := self._num_dropped + len(self._pending):
            log.warning("warning: logger.%s: %d calls were not sent (%s)", self.SERVICE, lost, self._failure)
        self._pending.clear()

    def _send(self, call: Callable[[], None]) -> None:
        if len(self._pending) < MAX_PENDING:
            self._pending.append(call)
        else:
            self._num_dropped += 1
        self._flush()

    def _flush(self, deadline: float | None = None) -> None:
        """Make the pending calls in order, until one fails.

        Args:
            deadline: time.monotonic() until which failing calls are dropped; None: they are kept.
        """
        if self._failure and deadline is None and time.monotonic() - self._failed_at < RETRY_S:
            return
        had_failed = bool(self._failure)
        while self._pending:
            try:
                if not self._is_open:
                    self.open_run()
                    self._is_open = True
                self._pending[0]()
            except Exception as error:  # of any library
                self._note_failure(error)
                is_late = deadline is not None and (time.monotonic() > deadline or not self._is_open)
                if is_late or (deadline is None and self._attempts < MAX_ATTEMPTS):
                    return
                self._num_dropped += 1
            self._pending.popleft()
            self._attempts = 0
        if had_failed and not self._num_dropped:
            log.info("logger.%s: all pending calls were sent", self.SERVICE)
        if not self._num_dropped:
            self._failure = ""

    def _note_failure(self, error: Exception) -> None:
        self._attempts += 1
        self._failed_at = time.monotonic()
        is_new, self._failure = not self._failure, redact_text(summarize(error))
        if is_new:
            text = "warning: logger.%s: %s; calls are kept and repeated every %.0f s"
            log.warning(text, self.SERVICE, self._failure, RETRY_S)

    def recorded_id(self) -> str | None:
        """Return the id of this run in the service, from the run folder; None for a new run."""
        return read_run_ids(self.folder).get(self.SERVICE)

    def record_id(self, run_id: str) -> None:
        """Write the id of this run in the service to the run folder."""
        record_run_id(self.folder, self.SERVICE, run_id)


def read_run_ids(folder: Path) -> dict[str, str]:
    """Return the ids of a run or sweep folder by service; empty if the file is missing or damaged."""
    try:
        found = json.loads((folder / RUN_IDS).read_text())
    except (OSError, ValueError):
        return {}
    return {name: str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def record_run_id(folder: Path, service: str, run_id: str) -> None:
    """Write an id to the file of a run or sweep folder."""
    ids = read_run_ids(folder)
    if ids.get(service) != run_id:
        replace_text(folder / RUN_IDS, json.dumps(ids | {service: run_id}, indent=2) + "\n")


def sweep_of(folder: Path) -> SweepFolder | None:
    """Return the sweep that a run folder belongs to; None for a single run."""
    return find_sweep(folder.absolute().parent)


def run_title(folder: Path) -> str:
    """Return the name under which a service shows a run: the last parts of its path."""
    path = folder.absolute()
    return f"{path.parent.name}/{path.name}"


def has_secret_arguments() -> bool:
    """Return True if the command line contains a secret, which services would record."""
    command = shlex.join(sys.argv)
    return redact_text(command) != command


def shown(folder: Path) -> str:
    """Return a path as the user types it."""
    return RunFolder(folder).shown


def start(loggers: Iterable[Logger], hyperparameters: dict[str, Any], config: str) -> None:
    """Log hyperparameters and, where a logger takes it, the text of the configuration."""
    for logger in loggers:
        logger.log_hyperparams(hyperparameters)
        if (log_config := getattr(logger, "log_config", None)) is not None:
            log_config(config)


@contextmanager
def closing(loggers: Sequence[Logger], status: Mapping[str, Any]) -> Iterator[None]:
    """Close the loggers' runs after a block with the state of the run.

    Args:
        loggers: those without a method `close` are left alone.
        status: its `state`, if any, is that of a block without an error [done].
    """
    try:
        yield
    except BaseException as error:
        is_stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        _close(loggers, "interrupted" if is_stopped else "failed")
        raise
    _close(loggers, status.get("state", "done"))


def _close(loggers: Sequence[Logger], state: str) -> None:
    for logger in loggers:
        if isinstance(logger, TrackingLogger):
            logger.close(state)


def log_results(loggers: Iterable[Logger], metrics: Mapping[str, float], monitor: str) -> None:
    """Log the metrics of a finished run, where a logger has a page for results of one value."""
    for logger in loggers:
        if (log_results := getattr(logger, "log_results", None)) is not None:
            log_results(metrics, monitor)


def send_checkpoint(loggers: Iterable[Logger], path: str | None) -> None:
    """Send the best checkpoint, if there is one, to the tracking services."""
    for logger in loggers:
        if path and isinstance(logger, TrackingLogger):
            logger.log_checkpoint(Path(path))
