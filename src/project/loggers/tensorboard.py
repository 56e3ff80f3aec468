"""TensorBoard events in the run folder."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import hparams

from project.loggers.events import Events


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
        _, *session = hparams(plain, {})
        for summary in session:
            self.experiment._get_file_writer().add_summary(summary)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write scalars, as one event; the epoch is no curve that anybody looks at."""
        scalars = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        at = step or 0
        self._latest = (at, self._latest[1] | scalars) if self._latest[0] == at else (at, scalars)
        self._write(scalars, at)

    def _write(self, scalars: Mapping[str, float], step: int) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
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
    def save(self) -> None:
        """Flush the events; the configuration stands in the run folder already."""
        self.experiment.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left; validation and test after training go on with the same file."""
        self.experiment._get_file_writer().event_writer.close()
