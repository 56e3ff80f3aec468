"""Keys of `scripts/evaluate.py`. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from project.config.choices import Accelerator, Views
from project.config.command_options import Overrides, option
from project.runs.find import LAST

EXAMPLES = """\
examples:
  python scripts/evaluate.py run=last
  python scripts/evaluate.py run=last split=val views=flip predictions=true
  python scripts/evaluate.py run=outputs/cnn_mnist_adam/2026-01-31_09-30-00 paths.data=/sets
  python scripts/evaluate.py run=last data=image_folder data.path=photos
  python scripts/evaluate.py run=outputs/sweep/2026-01-31_09-30-00 ensemble=top3
  python scripts/evaluate.py run=first,second combine=average
"""


@dataclass(frozen=True)
class Options:
    """Evaluate a trained network as its run did: the same data, the same weights, the
    same figures; or on another split, on other data, or several networks together.
    """

    run: list[str] = option([LAST], "a run's folder; a sweep's, for its best run; or last; several: a,b")
    split: Literal["test", "val", "train"] = option("test", "images, each once and unchanged")
    data: Overrides = option(Overrides(), "other data: data=cifar10, data.path=photos")
    paths: Overrides = option(Overrides(), "where the data lies by now: paths.data=FOLDER")
    views: Views | None = option(
        None, "copies of an image whose logits are averaged; null: as the run was tested"
    )
    weights: list[str] = option(["auto"], "auto (those that were tested), best, last, a file; or several")
    ensemble: str | None = option(None, "of a sweep several runs: all, or the first of its ranking, as top3")
    combine: Literal["ensemble", "average", "none"] | None = option(
        None,
        "several networks: ensemble (mean of probabilities, the default), average (of weights), or none",
    )
    batch_norm: Literal["recompute", "average"] = option(
        "recompute", "statistics of averaged weights: from training images, or averaged too"
    )
    predictions: bool = option(False, "write predictions.csv, a row an image")
    figures: bool = option(True, "draw confusion matrix, reliability diagram, worst mistakes")
    resamples: int = option(1000, "of the images, for the intervals; 0: none", least=0, most=100_000)
    seed: int = option(0, "of the resamples", least=0)
    accelerator: Accelerator | None = option(None, "null: as the run has it")
    output: Path | None = option(None, "folder to write; null: evaluation/… in the run's folder")
    outputs: Path = option(Path("outputs"), "where last is looked for")
