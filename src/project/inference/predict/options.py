"""Keys of `scripts/predict.py`. No torch."""

from dataclasses import dataclass
from pathlib import Path

from project.config.choices import Accelerator, Views
from project.config.command_options import option
from project.inference.predict.writers import SCREEN, Format
from project.runs.find import LAST

EXAMPLES = """\
examples:
  python scripts/predict.py input=photos
  python scripts/predict.py run=outputs/sweep/2026-01-31_09-30-00 input=a.jpg,b.png
  python scripts/predict.py input='photos/**/*.jpg' output=photos.csv sheet=photos.png
  python scripts/predict.py input=photos format=jsonl | jq .class
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Predict the classes of image files with a trained network.

    Files may be of any size and mode; they are scaled and normalized as in
    training. What is damaged or no image is named on standard error, and the rest
    done. Exit codes: 0 done, 2 wrong input, 3 no file could be predicted.
    """

    run: str = option(LAST, "a run's folder; a sweep's, for its best run; or last")
    input: list[str] = option(help="images, folders with all below them, patterns: a.jpg,photos,'*/*.png'")
    format: Format | None = option(None, "null: as the output's name ends")
    output: str = option(SCREEN, "a file to write; -: standard output")
    top: int = option(3, "so many classes for each image, most probable first", least=1)
    sheet: str | None = option(None, "draw a contact sheet of images and their classes: FILE.png")
    views: Views | None = option(None, "average over changed copies; null: those of the run's test")
    weights: str = option("auto", "best, last, previous or a checkpoint; auto: those that were tested")
    accelerator: Accelerator = option("auto", "what computes")
    batch_size: int = option(64, "images that go through the network together", least=1)
    threads: int | None = option(None, "that decode; null: one for each available CPU", least=1)
    outputs: Path = option(Path("outputs"), "where run=last is looked for")
