"""TensorBoard events in the run folder."""

import logging
import math
import re
import shutil
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
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
from torch.utils.tensorboard.summary import custom_scalars, hparams

from project.runtime import lightning_private

if TYPE_CHECKING:
    import PIL.Image

log = logging.getLogger(__name__)

SHOWN_NAMES = (
    (re.compile(r"(val|test)/best_(.+)"), r"best/\1/\2"),
    (re.compile(r"train/(lr|grad_norm)"), r"vitals/\1"),
    (re.compile(r"(speed|gpu)/(.+)"), r"vitals/\1_\2"),
)
"""Names of metrics in TensorBoard. Its HParams page shows the first five scalars in alphabetical order: so
results come first, and curves of the training last.
"""
CHARTS: dict[str, dict[str, list[Any]]] = {
    "training and validation": {
        "loss": ["Multiline", [r"^(train|val)/loss$"]],
        "accuracy": ["Multiline", [r"^(train|val)/acc$"]],
    },
    "vitals": {
        "learning rate": ["Multiline", [r"^vitals/lr$"]],
        "norm of the gradient": ["Multiline", [r"^vitals/grad_norm$"]],
        "images per second": ["Multiline", [r"^vitals/speed_images_per_s$"]],
    },
}
"""Page of custom scalars: the scalars of each chart by name."""
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d.*")
FLUSH_S = 1
PROJECTOR_FOLDER = "projector"
MAX_SPRITE_SIDE = 4096
"""Side of the picture of all thumbnails, pixels; WebGL takes no more everywhere."""
MAX_THUMBNAIL_SIDE = 64
MAX_DIMENSIONS = 256
"""Of embeddings; thousands of columns take seconds to write and to load, and the page itself uses fewer."""


class TensorBoard(TensorBoardLogger):
    """Lightning's logger with events in the run folder itself, so that a run has the folder's name.

    Of what `add_hparams` writes, the list of columns is left out, which TensorBoard would take for all runs.
    Without it the HParams page shows every value of every run, those that differ first, and the last value of
    every metric.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)
        self._latest: tuple[int, dict[str, float]] = (0, {})  # a step and its scalars

    @property
    @rank_zero_experiment
    def experiment(self) -> "SummaryWriter":
        """Return torch's writer of the event file, for images, histograms and the like."""
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
        """Write a row of the HParams page, which takes its metrics from the logged ones, and its charts."""
        values = params if isinstance(params, dict) else vars(params)
        plain = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in values.items()
        }
        _, start, end = hparams(plain, {})
        _name_row(start, _row_name(Path(self.root_dir).absolute()))
        for summary in (start, end, custom_scalars(CHARTS)):
            self._writer.add_summary(summary)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write scalars but the epoch, as one event."""
        scalars = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        at = step or 0
        self._latest = (at, self._latest[1] | scalars) if self._latest[0] == at else (at, scalars)
        self._write_scalars(scalars, at)

    def _write_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        values = [Summary.Value(tag=shown_name(name), simple_value=value) for name, value in scalars.items()]
        self._writer.add_summary(Summary(value=values), step)

    @rank_zero_only
    def state_dict(self) -> dict[str, Any]:
        """Flush the events; return the last step and its scalars, for a checkpoint."""
        self.experiment.flush()
        step, scalars = self._latest
        return {"step": step, "scalars": dict(scalars)}

    @rank_zero_only
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint: TensorBoard drops later events, and those of this step, which are
        written again.
        """
        step, scalars = state["step"], state["scalars"]
        self._latest = step, dict(scalars)
        if not scalars:
            step = 1  # drops all scalars; the configuration stands at 0
        self._writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step)
        if scalars:
            self._write_scalars(scalars, step)

    @rank_zero_only
    def log_text(self, tag: str, text: str) -> None:
        """Show a text, as written, on the Text page."""
        self.experiment.add_text(tag, "\n".join("    " + line for line in text.splitlines()))

    @rank_zero_only
    def log_markdown(self, tag: str, text: str, step: int) -> None:
        """Show Markdown on the Text page."""
        self.experiment.add_text(tag, text, step)

    @rank_zero_only
    def log_image(self, tag: str, image: "PIL.Image.Image", step: int) -> None:
        """Show a picture on the Images page."""
        data = BytesIO()
        image.save(
            data, format="PNG", compress_level=3
        )  # the default level of `add_image` takes three times as long
        encoded = Summary.Image(
            width=image.width, height=image.height, colorspace=3, encoded_image_string=data.getvalue()
        )
        self._writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=encoded)]), step)

    @rank_zero_only
    def log_network(self, network: nn.Module, run: Callable[[], Any], images: Tensor) -> None:
        """Show a network on the Graphs page, see `record_graph`."""
        from project.loggers.tensorboard_graph import record_graph

        graph = record_graph(network, run, images)
        self._writer.add_event(Event(graph_def=graph.SerializeToString()))

    @rank_zero_only
    def log_embeddings(
        self, tag: str, points: Tensor, columns: Sequence[str], rows: Sequence[Sequence[str]], images: Tensor
    ) -> None:
        """Show points (N, D) on the Projector page, with values by column and images (N, C, H, W) uint8."""
        shutil.rmtree(Path(self.root_dir, PROJECTOR_FOLDER, tag), ignore_errors=True)
        cells = [[" ".join(cell.split()) or "–" for cell in row] for row in rows]
        self.experiment.add_embedding(
            _round(project_points(points.numpy())),
            metadata=cells,
            metadata_header=list(columns),
            label_img=_thumbnails(images),
            global_step=PROJECTOR_FOLDER,  # names the folder
            tag=tag,
        )

    @rank_zero_only
    def save(self) -> None:
        """Flush the events; the configuration stands in the run folder already."""
        self.experiment.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Flush the events; validation and test after training continue with the same file."""
        self.experiment.flush()

    @property
    def _writer(self) -> FileWriter:
        return self.experiment._get_file_writer()


class _GuardedWriter(SummaryWriter):
    """torch's `SummaryWriter`, but a full disk ends the curves with a warning, never the run.

    Its thread would raise the error of a write, print a traceback, and let later calls fail.
    """

    def _get_file_writer(self) -> FileWriter:
        is_new = self.file_writer is None
        writer: FileWriter = super()._get_file_writer()
        if is_new:
            records = writer.event_writer._async_writer._writer
            records._writer = _GuardedFile(records._writer)
        return writer


class _GuardedFile:
    """File of events, written once per flush, which drops all that follows a failed write."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._pending = bytearray()
        self._has_failed = False

    def write(self, record: bytes) -> None:
        if not self._has_failed:
            self._pending += record  # the file is opened for each write

    def flush(self) -> None:
        data, self._pending = bytes(self._pending), bytearray()
        if not data or self._has_failed:
            return
        try:
            self._file.write(data)
        except OSError as error:
            self._has_failed = True
            path = Path(self._file.filename.decode())
            log.warning("warning: %s: %s; TensorBoard's curves end here", path, error.strerror or error)

    def close(self) -> None:
        self.flush()
        self._file.close()


def shown_name(name: str) -> str:
    """Return the name of a metric in TensorBoard."""
    for pattern, shown in SHOWN_NAMES:
        if found := pattern.fullmatch(name):
            return found.expand(shown)
    return name


def _row_name(folder: Path) -> str:
    """Return a run's name, its distinguishing part first: the page truncates names."""
    own, parent = folder.name, folder.parent.name
    return f"{parent} {own}" if TIMESTAMP.fullmatch(own) else f"{own} {parent}".strip()


def _name_row(start: Summary, name: str) -> None:
    """Name a row of the HParams page, which has the run's path otherwise."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    for value in start.value:
        content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
        content.session_start_info.group_name = name
        value.metadata.plugin_data.content = content.SerializeToString()


def project_points(points: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Return points (N, D) in at most `MAX_DIMENSIONS` dimensions.

    Wider ones are multiplied with a fixed Gaussian matrix, which keeps distances to within some percent
    (Johnson and Lindenstrauss 1984; Dasgupta and Gupta 2003).
    """
    width = points.shape[1]
    if width <= MAX_DIMENSIONS:
        return points
    draws = np.random.default_rng(0).standard_normal((width, MAX_DIMENSIONS), dtype=np.float32)
    return points @ (draws / np.float32(np.sqrt(MAX_DIMENSIONS)))


def _round(points: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Round to four significant digits of the largest value: files become a third as large."""
    largest = float(np.abs(points).max())
    digits = 3 - math.floor(math.log10(largest)) if 0 < largest < math.inf else 3
    return points.astype(float).round(digits)


def _thumbnails(images: Tensor) -> Tensor:
    """Return images (N, C, H, W) as squares on the scale [0, 1], small enough for one picture of all."""
    per_row = math.ceil(math.sqrt(len(images)))
    height, width = images.shape[2:]
    largest = max(height, width)
    side = min(largest, MAX_THUMBNAIL_SIDE, MAX_SPRITE_SIDE // per_row)
    squares = F.pad(images / 255, (0, largest - width, 0, largest - height))  # torch takes no tall ones
    return F.interpolate(squares, size=side, mode="area")
