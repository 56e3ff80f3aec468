"""Options of `scripts/predict.py`. Imports no torch."""

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

    Images of any size and mode are scaled and normalized as in training. Damaged
    files are listed on standard error and skipped. Exit codes: 0 done, 2 wrong
    input, 3 no file could be predicted.
    """

    run: str = option(LAST, "run folder, sweep folder (its best run), or last")
    input: list[str] = option(help="images, folders (searched recursively), patterns: a.jpg,photos,'*/*.png'")
    format: Format | None = option(None, "output format; null: by the suffix of the output")
    output: str = option(SCREEN, "output file; -: standard output")
    top_k: int = option(3, "classes for each image, most probable first", least=1)
    sheet: str | None = option(None, "contact sheet of images and their classes to draw: FILE.png")
    tta: Views | None = option(None, "test-time augmentation; null: as in the run's test")
    weights: str = option("auto", "best, last, previous or a checkpoint; auto: those of the run's test")
    accelerator: Accelerator = option("auto", "device")
    batch_size: int = option(64, "images in a forward pass", least=1)
    num_threads: int | None = option(None, "decoding threads; null: one for each available CPU", least=1)
    outputs: Path = option(Path("outputs"), "folder in which run=last is searched")
