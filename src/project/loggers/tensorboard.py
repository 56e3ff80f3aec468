"""TensorBoard events in the run folder."""

import io
import re
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor, nn
from torch.utils.tensorboard.summary import custom_scalars, hparams

from project.loggers.events import Events

if TYPE_CHECKING:
    import PIL.Image
    from numpy.typing import NDArray

NAMES = (
    (re.compile(r"(val|test)/best_(.+)"), r"best/\1/\2"),
    (re.compile(r"train/(lr|grad_norm)"), r"vitals/\1"),
    (re.compile(r"(speed|gpu)/(.+)"), r"vitals/\1_\2"),
)
"""How some metrics are called in TensorBoard. Its HParams page shows the first five scalars in alphabetical
order, whatever they are; so those of a run's result come first, and those of its course last.
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
"""The page of custom scalars: curves that belong together on one chart, each chart's scalars by name."""
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d.*")


class TensorBoard(TensorBoardLogger):
    """Lightning's logger with events straight in the run folder, so that a run bears the folder's name.

    Of what `add_hparams` writes, the list of columns is left out: TensorBoard would take one run's list for
    all of them. Without it, the HParams page shows every value of every run, those that differ first, and
    the last value of every metric.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)
        self._latest: tuple[int, dict[str, float]] = (0, {})  # a step and what was written at it

    @property
    @rank_zero_experiment
    def experiment(self) -> Events:
        """Torch's interface to the event file, for images, histograms and the like."""
        if self._experiment is None:
            self._experiment = Events(self.root_dir)
        assert isinstance(self._experiment, Events)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(
        self,
        params: dict[str, Any] | Namespace,
        metrics: dict[str, Any] | None = None,
        step: int | None = None,
    ) -> None:
        """Write a row of the HParams page.

        Args:
            params: names and plain values.
            metrics: not needed: the page takes what the run logs.
            step: not needed.
        """
        values = params if isinstance(params, dict) else vars(params)
        plain = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in values.items()
        }
        _, start, end = hparams(plain, {})
        _name_row(start, _row_name(Path(self.root_dir).absolute()))
        for summary in (start, end, custom_scalars(CHARTS)):
            self.experiment._get_file_writer().add_summary(summary)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write scalars, as one event; the epoch is no curve that anybody looks at."""
        scalars = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        at = step or 0
        self._latest = (at, self._latest[1] | scalars) if self._latest[0] == at else (at, scalars)
        self._write(scalars, at)

    def _write(self, scalars: Mapping[str, float], step: int) -> None:
        values = [Summary.Value(tag=shown_as(name), simple_value=value) for name, value in scalars.items()]
        self.experiment._get_file_writer().add_summary(Summary(value=values), step)

    @rank_zero_only
    def state_dict(self) -> dict[str, Any]:
        """How far the curves are, for a checkpoint, after writing them."""
        self.experiment.flush()
        step, scalars = self._latest
        return {"step": step, "scalars": dict(scalars)}

    @rank_zero_only
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there: of what is in the folder, TensorBoard drops what was written at later steps, and
        at this one, whose values are written again.
        """
        step, scalars = state["step"], state["scalars"]
        self._latest = step, dict(scalars)
        if not scalars:
            step = 1  # whatever there is; the configuration stands at 0
        start = SessionLog(status=SessionLog.START)
        self.experiment._get_file_writer().add_event(Event(session_log=start), step)
        if scalars:
            self._write(scalars, step)

    @rank_zero_only
    def log_text(self, tag: str, text: str) -> None:
        """Show a text, as written, on the Text page."""
        indented = "\n".join("    " + line for line in text.splitlines())
        self.experiment.add_text(tag, indented)

    @rank_zero_only
    def log_markdown(self, tag: str, text: str, step: int) -> None:
        """Show Markdown on the Text page."""
        self.experiment.add_text(tag, text, step)

    @rank_zero_only
    def log_picture(self, tag: str, picture: "PIL.Image.Image", step: int) -> None:
        """Show a picture on the Images page, as a PNG file in the events."""
        data = io.BytesIO()
        picture.save(data, format="PNG", compress_level=3)  # the default takes three times as long
        image = Summary.Image(
            width=picture.width, height=picture.height, colorspace=3, encoded_image_string=data.getvalue()
        )
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self.experiment._get_file_writer().add_summary(summary, step)

    @rank_zero_only
    def draw_graph(self, network: nn.Module, run: Callable[[], Any], images: Tensor) -> None:
        """Show what a network computes on the Graphs page, see `record_graph`."""
        from project.loggers.graph import record_graph

        graph = record_graph(network, run, images)
        self.experiment._get_file_writer().add_event(Event(graph_def=graph.SerializeToString()))

    @rank_zero_only
    def log_projection(
        self,
        name: str,
        points: "NDArray[np.float32]",
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        images: Tensor,
    ) -> None:
        """Show points on the Projector page, see `write_projection`."""
        from project.loggers.projection import write_projection

        write_projection(Path(self.root_dir), name, points, columns, rows, images)

    @rank_zero_only
    def save(self) -> None:
        """Flush the events; the configuration stands in the run folder already."""
        self.experiment.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left; validation and test after training go on with the same file."""
        self.experiment._get_file_writer().event_writer.close()


def shown_as(name: str) -> str:
    """What a metric is called in TensorBoard."""
    for pattern, shown in NAMES:
        if found := pattern.fullmatch(name):
            return found.expand(shown)
    return name


def _row_name(folder: Path) -> str:
    """What tells a run from others at a glance, then what makes it unique: the page cuts names off."""
    own, above = folder.name, folder.parent.name
    return f"{above} {own}" if TIMESTAMP.fullmatch(own) else f"{own} {above}".strip()


def _name_row(start: Summary, name: str) -> None:
    """Name a row of the HParams page, which would bear the run's path."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    for value in start.value:
        content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
        content.session_start_info.group_name = name
        value.metadata.plugin_data.content = content.SerializeToString()
