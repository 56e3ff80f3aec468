"""Logger that writes TensorBoard event files to the run folder."""

import logging
import math
import re
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.tensorboard import FileWriter, SummaryWriter
from torch.utils.tensorboard.summary import custom_scalars

from project.loggers.tensorboard_added import GROUP
from project.loggers.tensorboard_hparams import (
    SUFFIX,
    is_best_of,
    is_result,
    remove_results,
    results_table,
    row_columns,
    row_summaries,
)
from project.runs.metric_names import parse
from project.runtime import lightning_private

if TYPE_CHECKING:
    import PIL.Image

log = logging.getLogger(__name__)

DISPLAY_NAMES = (
    (re.compile(r"train/(lr|grad_norm)"), r"vitals/\1"),
    (re.compile(r"(speed|gpu)/(.+)"), r"vitals/\1_\2"),
)
"""Patterns of names and their replacements in TensorBoard; all other tags are the names in metrics.csv.

Its first page opens the first two groups in alphabetical order: with these names, those of training and
validation.
"""
CURVES, VITALS = "training and validation", "vitals"
"""Categories of the Custom Scalars page."""
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d.*")
FLUSH_S = 1
PROJECTOR_FOLDER = "projector"
MAX_SPRITE_SIDE = 4096
"""Maximum side of the image that holds all thumbnails, pixels; not every WebGL device supports more."""
MAX_THUMBNAIL_SIDE = 64
MAX_EMBEDDING_DIM = 256
"""Maximum dimension of logged embeddings; thousands of columns take seconds to write and load."""


class TensorBoard(TensorBoardLogger):
    """Lightning's `TensorBoardLogger` with event files in the run folder itself, which names the run.

    Results of one value, such as those of the test, are not charts: `log_results` writes them to the HParams
    and Text pages (see `tensorboard_hparams`). The Custom Scalars page shows training and validation of a
    metric in one chart.

    Args:
        folder: run folder.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)
        self._last_event: tuple[int, dict[str, float]] = (0, {})  # last step and its scalars
        self._hyperparameters: dict[str, Any] = {}
        self._results: dict[str, float] = {}
        self._tags: dict[str, None] = {}  # of all scalars so far, in order

    @property
    @rank_zero_experiment
    def experiment(self) -> "SummaryWriter":
        """Return torch's `SummaryWriter`, for images, histograms and other summaries."""
        writer = lightning_private.experiment_of(self)
        if writer is None:
            writer = _GuardedWriter(self.root_dir, flush_secs=FLUSH_S)
            lightning_private.set_experiment(self, writer)
        assert isinstance(writer, SummaryWriter)
        return writer

    @rank_zero_only
    def log_hyperparams(
        self,
        params: dict[str, Any] | Namespace,
        metrics: dict[str, Any] | None = None,
        step: int | None = None,
    ) -> None:
        """Keep hyperparameters for `log_results`; those of a later call are ignored."""
        self._hyperparameters = self._hyperparameters or dict(
            params if isinstance(params, dict) else vars(params)
        )

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write all scalars as one event, except the epoch and results of one value, which are kept."""
        values = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        self._results |= {name: value for name, value in values.items() if is_result(name)}
        scalars = {name: value for name, value in values.items() if name not in self._results}
        if not scalars:
            return
        at = step or 0
        self._last_event = (at, self._last_event[1] | scalars) if self._last_event[0] == at else (at, scalars)
        self._write_scalars(scalars, at)

    @rank_zero_only
    def log_results(self, metrics: Mapping[str, float], monitor: str) -> None:
        """Write results and hyperparameters to the HParams page, and results to the Text page.

        Args:
            metrics: all metrics of the run by name.
            monitor: name of the monitored metric.
        """
        results = dict(self._results)
        if monitor in metrics and not any(is_best_of(name, monitor) for name in results):
            results[monitor] = float(metrics[monitor])
        folder = Path(self.root_dir)
        remove_results(folder)
        writer = _GuardedWriter(self.root_dir, flush_secs=FLUSH_S, filename_suffix=SUFFIX)
        columns = row_columns(self._hyperparameters, results, monitor)
        for summary in row_summaries(columns, _row_name(folder.absolute())):
            writer._get_file_writer().add_summary(summary)
        writer.add_text("results", results_table(results, monitor))
        writer.close()

    def _write_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        values = [
            Summary.Value(tag=display_name(name), simple_value=value) for name, value in scalars.items()
        ]
        self._writer.add_summary(Summary(value=values), step)
        if not self._tags.keys() >= {value.tag for value in values}:
            self._tags |= dict.fromkeys(value.tag for value in values)
            self._writer.add_summary(custom_scalars(chart_layout(self._tags)))

    @rank_zero_only
    def state_dict(self) -> dict[str, Any]:
        """Flush the event file; return the last step and its scalars, for a checkpoint."""
        self.experiment.flush()
        step, scalars = self._last_event
        return {"step": step, "scalars": dict(scalars)}

    @rank_zero_only
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        TensorBoard discards later events and those of the checkpoint's step, which are written again.
        """
        step, scalars = state["step"], state["scalars"]
        self._last_event = step, dict(scalars)
        if not scalars:
            step = 1  # discards all scalars, but keeps the hyperparameters at step 0
        self._writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step)
        if scalars:
            self._write_scalars(scalars, step)

    @rank_zero_only
    def log_config(self, text: str) -> None:
        """Add the configuration to the Text page."""
        self.experiment.add_text("config", "\n".join("    " + line for line in text.splitlines()))

    @rank_zero_only
    def log_markdown(self, tag: str, text: str, step: int) -> None:
        """Add Markdown to the Text page."""
        self.experiment.add_text(tag, text, step)

    @rank_zero_only
    def log_image(self, tag: str, image: "PIL.Image.Image", step: int) -> None:
        """Add an image to the Images page."""
        data = BytesIO()
        # The default compression level, which `add_image` uses, takes three times as long.
        image.save(data, format="PNG", compress_level=3)
        encoded = Summary.Image(
            width=image.width, height=image.height, colorspace=3, encoded_image_string=data.getvalue()
        )
        self._writer.add_summary(Summary(value=[Summary.Value(tag=f"{GROUP}/{tag}", image=encoded)]), step)

    @rank_zero_only
    def log_network(self, network: nn.Module, run: Callable[[], Any], images: Tensor) -> None:
        """Add a network to the Graphs page (see `record_graph`)."""
        from project.loggers.tensorboard_graph import record_graph

        graph = record_graph(network, run, images)
        self._writer.add_event(Event(graph_def=graph.SerializeToString()))

    @rank_zero_only
    def log_embeddings(
        self, tag: str, points: Tensor, columns: Sequence[str], rows: Sequence[Sequence[str]], images: Tensor
    ) -> None:
        """Add embeddings to the Projector page.

        Args:
            tag: name of the embeddings.
            points: embeddings (N, D).
            columns: names of the metadata columns.
            rows: metadata of the N embeddings.
            images: thumbnails (N, C, H, W), uint8.
        """
        shutil.rmtree(Path(self.root_dir, PROJECTOR_FOLDER, tag), ignore_errors=True)
        cells = [[" ".join(cell.split()) or "–" for cell in row] for row in rows]
        self.experiment.add_embedding(
            _round(project_embeddings(points.numpy())),
            metadata=cells,
            metadata_header=list(columns),
            label_img=_thumbnails(images),
            global_step=PROJECTOR_FOLDER,  # the name of the folder
            tag=tag,
        )

    @rank_zero_only
    def save(self) -> None:
        """Flush the event file; the run folder already contains the configuration."""
        self.experiment.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Flush the event file; validation and test after training write to the same file."""
        self.experiment.flush()

    @property
    def _writer(self) -> FileWriter:
        return self.experiment._get_file_writer()


class _GuardedWriter(SummaryWriter):
    """torch's `SummaryWriter` that logs a warning if a write fails, for example on a full disk.

    Otherwise its thread would print a traceback, and later calls would fail.
    """

    def _get_file_writer(self) -> FileWriter:
        is_new = self.file_writer is None
        writer: FileWriter = super()._get_file_writer()
        if is_new:
            records = writer.event_writer._async_writer._writer
            records._writer = _GuardedFile(records._writer)
        return writer


class _GuardedFile:
    """Event file that is written once per flush, and discards all events after a failed write."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._pending = bytearray()
        self._has_failed = False

    def write(self, record: bytes) -> None:
        if not self._has_failed:
            self._pending += record  # buffered, because each write opens the file

    def flush(self) -> None:
        data, self._pending = bytes(self._pending), bytearray()
        if not data or self._has_failed:
            return
        try:
            self._file.write(data)
        except OSError as error:
            self._has_failed = True
            path = Path(self._file.filename.decode())
            log.warning("warning: %s: %s; no more TensorBoard events", path, error.strerror or error)

    def close(self) -> None:
        self.flush()
        self._file.close()


def display_name(name: str) -> str:
    """Return the display name of a metric in TensorBoard."""
    for pattern, shown in DISPLAY_NAMES:
        if found := pattern.fullmatch(name):
            return found.expand(shown)
    return name


def _row_name(folder: Path) -> str:
    """Return the name of a run for the HParams page, which truncates names: the unique part first."""
    own, parent = folder.name, folder.parent.name
    return f"{parent} {own}" if TIMESTAMP.fullmatch(own) else f"{own} {parent}".strip()


def chart_layout(tags: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
    """Return the charts of the Custom Scalars page: one per metric of training and validation, one per vital.

    Args:
        tags: of all scalars.
    """
    charts: dict[str, dict[str, list[Any]]] = {CURVES: {}, VITALS: {}}
    for tag in tags:
        split, kind = parse(tag)
        if split and not kind.endswith("_step"):
            charts[CURVES][kind] = ["Multiline", [rf"^(train|val)\w*[/_]{re.escape(kind)}(_epoch)?$"]]
        elif tag.startswith(f"{VITALS}/"):
            charts[VITALS][tag.removeprefix(f"{VITALS}/")] = ["Multiline", [f"^{re.escape(tag)}$"]]
    return {category: found for category, found in charts.items() if found}


def project_embeddings(points: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Project embeddings (N, D) to at most `MAX_EMBEDDING_DIM` dimensions.

    A fixed Gaussian random projection preserves distances to within a few percent (Johnson and Lindenstrauss
    1984; Dasgupta and Gupta 2003).
    """
    width = points.shape[1]
    if width <= MAX_EMBEDDING_DIM:
        return points
    draws = np.random.default_rng(0).standard_normal((width, MAX_EMBEDDING_DIM), dtype=np.float32)
    return points @ (draws / np.float32(np.sqrt(MAX_EMBEDDING_DIM)))


def _round(points: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Round to four significant digits of the largest value, which reduces file size to a third."""
    largest = float(np.abs(points).max())
    digits = 3 - math.floor(math.log10(largest)) if 0 < largest < math.inf else 3
    return points.astype(float).round(digits)


def _thumbnails(images: Tensor) -> Tensor:
    """Return images (N, C, H, W) as square thumbnails with values in [0, 1]."""
    per_row = math.ceil(math.sqrt(len(images)))
    height, width = images.shape[2:]
    largest = max(height, width)
    side = min(largest, MAX_THUMBNAIL_SIDE, MAX_SPRITE_SIDE // per_row)
    squares = F.pad(images / 255, (0, largest - width, 0, largest - height))  # torch requires square images
    return F.interpolate(squares, size=side, mode="area")
