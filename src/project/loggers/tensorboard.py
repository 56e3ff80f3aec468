"""TensorBoard events in the run folder."""

from argparse import Namespace
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams


class TensorBoard(TensorBoardLogger):
    """Lightning's logger with events straight in the run folder, so that a run bears the folder's name.

    `log_hyperparams` announces the metrics of the HParams page without writing a value for them: the page
    takes the last value that the run logs.

    Args:
        folder: the run folder.
        metrics: columns of the HParams page.
    """

    def __init__(self, folder: str, metrics: list[str]) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)
        self.metrics = metrics

    @rank_zero_only
    def log_hyperparams(
        self,
        params: dict[str, Any] | Namespace,
        metrics: dict[str, Any] | None = None,
        step: int | None = None,
    ) -> None:
        """Write the columns of the HParams page.

        Args:
            params: names and plain values.
            metrics: not needed, the columns were given before.
            step: not needed.
        """
        values = params if isinstance(params, dict) else vars(params)
        plain = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in values.items()
        }
        writer = self.experiment._get_file_writer()
        for summary in hparams(plain, dict.fromkeys(self.metrics, float("nan"))):
            writer.add_summary(summary)

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
        """Flush, and keep the file open: validation and test after training belong to the same one."""
        self.experiment.flush()
