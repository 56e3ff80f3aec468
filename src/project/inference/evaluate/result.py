"""What is evaluated, and what the run itself has on record of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from project.inference.evaluate.forward import Pass
from project.inference.evaluate.options import Options
from project.inference.load_run import Trained


@dataclass(frozen=True)
class Subject:
    """A network, or several as one, and what it said of the images.

    Args:
        title: what it is, for the screen.
        trained: the network; of several, the first.
        result: of the pass over the images.
        views: that were averaged.
        weights: as asked.
        members: of several, each with its own figures.
        combined: how several were made one, or None.
    """

    title: str
    trained: Trained
    result: Pass
    views: str
    weights: str
    members: Sequence[tuple[str, dict[str, Any]]] = ()
    combined: str | None = None


def run_figures(options: Options, subject: Subject) -> dict[str, float] | None:
    """Accuracy and loss that the run has on record for the same weights, split and views, or None."""
    trained = subject.trained
    status = trained.run.read_status()
    metrics, tested = status.get("metrics"), status.get("weights")
    views = trained.config.get("test_views", "none") if options.split == "test" else "none"
    its_own = trained.checkpoint.resolve().parent == trained.run.checkpoints.resolve()
    same = subject.combined is None and subject.views == views and trained.checkpoint.stem == tested
    same = same and its_own  # a file of another run may have the same name
    if not same or options.split == "train" or not isinstance(metrics, dict):
        return None
    if any(not word.startswith(("data.path=", "data.eval_batch_size=")) for word in options.data):
        return None
    acc, loss = metrics.get(f"{options.split}/acc"), metrics.get(f"{options.split}/loss")
    return None if acc is None or loss is None else {"accuracy": acc, "loss": loss}
