"""Options of `scripts/explain.py`. Does not import torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from project.config.command_options import option
from project.datamodules.storage.image_files import SkippedFile
from project.errors import InputError
from project.inference.options import Accelerator, DataOptions
from project.inference.predict.command import find_files
from project.inference.run_config import check_request, read_config, require_image_classifier
from project.runs.comparison import find_trained
from project.runtime import lazy_imports
from project.runtime.output_files import refuse_unwritable_output
from project.runtime.text import printable

Method = Literal["auto", "grad_cam", "integrated_gradients", "occlusion", "attention_rollout"]
Baseline = Literal["black", "mean"]
PREDICTED, LABEL = "predicted", "label"
"""Values of `target=` that are not class names."""
CHOICES = ("worst", "first", "random")

EXAMPLES = """\
examples:
  python scripts/explain.py run=last
  python scripts/explain.py run=last input=photos method=occlusion
  python scripts/explain.py run=last images=first count=20 target=label
  python scripts/explain.py run=last images=3,17,256 method=grad_cam layer=body.4
  python scripts/explain.py run=last input=a.jpg target=cat neighbors=0
"""


@dataclass(frozen=True, kw_only=True)
class Options(DataOptions):
    """Explain predictions of a trained network: saliency maps of images, and the
    nearest training images in the network's feature space.

    A map shows the pixels that are evidence for a class, by default the predicted
    one. Images are given as files, or are the worst mistakes of a split.
    """

    input: list[str] = option(
        [], "images, folders (searched recursively), patterns; none: images of the split"
    )
    split: Literal["test", "val", "train"] = option("test", "split of the images")
    images: list[str] = option(
        ["worst"], "worst (mistakes), first, random, or numbers as in predictions.csv: 3,17"
    )
    count: int = option(12, "maximum number of images", least=1, most=1000)
    method: Method = option("auto", "saliency method; auto: the first that fits the network")
    target: str = option(PREDICTED, "class that the maps explain: predicted, label, or a class name")
    layer: str | None = option(None, "layer of Grad-CAM; null: the deepest feature map")
    baseline: Baseline = option("black", "image without evidence, for integrated gradients and occlusion")
    num_steps: int = option(50, "steps of integrated gradients", least=1, most=10_000)
    window: int | None = option(
        None, "side of the occluding square, pixels; null: a fifth of the image", least=1
    )
    neighbors: int = option(3, "nearest training images for each image", least=0, most=10)
    train_images: int | None = option(
        10_000, "training images searched for neighbors, evenly spaced; null: all", least=1
    )
    seed: int = option(0, "seed of images=random", least=0)
    accelerator: Accelerator = option("auto", "device")
    output: Path | None = option(None, "output folder; null: evaluation/explain-… in the run's folder")


def main(options: Options) -> None:
    """Check the options without torch, then explain."""
    run = find_trained(options.run, options.outputs)
    config = read_config(run)
    require_image_classifier(config, run.shown)
    if len(options.images) > 1 or options.images[0] not in CHOICES:
        for word in options.images:
            if not word.isdecimal():
                raise InputError(
                    f"images={word}: unknown images (expected {', '.join(CHOICES)}, or numbers from 0); "
                    "give images=worst or images=3,17"
                )
    if options.target == LABEL and options.input:
        raise InputError(f"target={LABEL}: files have no labels; give target={PREDICTED} or a class name")
    files: list[str] = []
    skipped: list[SkippedFile] = []
    if options.input:
        files, skipped = find_files(options.input)
        if not files:
            given = printable(",".join(options.input))
            raise InputError(f"input={given}: no image files there (hidden ones do not count)")
    if options.output is not None:
        refuse_unwritable_output(f"output={options.output}", options.output, folder=True)
    check_request(run, options.weights, options.data_overrides)
    lazy_imports.defer_imports()
    from project.inference.explain.command import explain  # imports torch

    lazy_imports.freeze_gc()
    explain(options, run, files, skipped)
