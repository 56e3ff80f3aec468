"""Options and implementation of `scripts/predict.py`. Imports torch only after checking the options.

Paths are strings: for a million files, creating `Path` objects takes longer than the search.
"""
# ruff: noqa: PTH111, PTH112, PTH119, PTH207

import glob
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from project.config.command_options import option
from project.datamodules.storage.image_files import UNIMPORTANT, ImageWalk, SkippedFile, require_regular
from project.errors import DataError, InputError
from project.inference.options import Accelerator, RunOptions
from project.inference.predict.writers import (
    EARLIER_OUTPUT,
    STDOUT,
    Format,
    choose_format,
    open_output,
    write_predictions,
)
from project.inference.run_config import check_request, is_image_classifier, read_config
from project.runs.comparison import find_trained
from project.runtime import lazy_imports
from project.runtime.console import LOADING, terminal_width, waiting
from project.runtime.output_files import (
    IMAGE,
    MADE_BY,
    atomic_output,
    refuse_foreign_file,
    refuse_unwritable_output,
)
from project.runtime.text import plural, printable

if TYPE_CHECKING:
    from project.inference.predict.predictions import Prediction

SHEET_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
MAX_ON_SHEET = 400
"""Maximum number of images on a contact sheet; of more images, every second, third, … is drawn."""

EXAMPLES = """\
examples:
  python scripts/predict.py input=photos
  python scripts/predict.py run=outputs/sweep/2026-01-31_09-30-00 input=a.jpg,b.png
  python scripts/predict.py input='photos/**/*.jpg' output=photos.csv sheet=photos.png
  python scripts/predict.py input=photos format=jsonl | jq .class
"""


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """Predict the classes of image files with a trained network.

    Images of any size and mode are scaled and normalized as in training. Damaged
    files are listed on standard error and skipped. Exit codes: 0 done, 2 wrong
    input, 3 no file could be predicted.
    """

    input: list[str] = option([], "images, folders (searched recursively), patterns: a.jpg,photos,'*/*.png'")
    format: Format | None = option(None, "output format; null: chosen by the suffix of the output")
    output: str = option(STDOUT, "output file; -: standard output")
    top_k: int = option(3, "classes for each image, most probable first", least=1)
    sheet: str | None = option(None, "file for a contact sheet of images and predicted classes: FILE.png")
    accelerator: Accelerator = option("auto", "device")
    batch_size: int = option(64, "images in a forward pass", least=1)
    num_threads: int | None = option(None, "decoding threads; null: one for each available CPU", least=1)


def predict_files(options: Options) -> None:
    """Check the options without torch, then predict, write predictions and draw the contact sheet."""
    kind = choose_format(options.output, options.format)
    run = find_trained(options.run, options.outputs)
    is_of_images = is_image_classifier(read_config(run))
    if is_of_images and not options.input:
        raise InputError("input: not given; set input=FILE or input=FOLDER")
    files, skipped = find_files(options.input)
    _check_outputs(options, kind, files)
    check_request(run, options.weights, ())
    if not is_of_images:
        with waiting(LOADING):
            from project.inference.predict.any_module import predict_any  # imports torch

        predict_any(options, run, kind, files, skipped)
        return
    for entry in skipped:
        _print_skipped(entry)
    num_unsuitable = len(skipped)
    if not files:
        raise _no_prediction(options, skipped)

    warnings.filterwarnings("ignore", module="PIL")  # about images that are decoded nevertheless
    lazy_imports.defer_imports()
    with waiting(LOADING):
        from project.inference.load_run import load_run  # imports torch
        from project.inference.predict.predictions import predict

    trained = load_run(run, options.weights)
    lazy_imports.freeze_gc()

    def on_skip(entry: SkippedFile) -> None:
        skipped.append(entry)
        _print_skipped(entry)

    predictions = predict(
        trained,
        files,
        top_k=options.top_k,
        batch_size=options.batch_size,
        tta=options.tta,
        accelerator=options.accelerator,
        num_threads=options.num_threads,
        on_skip=on_skip,
    )
    print(f"{run.shown}, {trained.checkpoint.name}", file=sys.stderr)
    first = next(predictions, None)
    if first is None:
        raise _no_prediction(options, skipped)
    sheet_predictions: list[Prediction] = []
    sheet_step = -(-len(files) // MAX_ON_SHEET) if options.sheet else 0
    is_streamed = options.output == STDOUT and kind != "table"
    shown_predictions = tqdm(
        _collect_every_nth(chain([first], predictions), sheet_predictions, sheet_step),
        total=len(files),
        unit=" images",
        leave=False,
        disable=True if is_streamed else None,  # None: unless standard error is a terminal
    )
    top_k = min(options.top_k, len(trained.class_names))
    with open_output(options.output, kind) as stream:
        write_predictions(kind, stream, shown_predictions, trained.class_names, top_k, terminal_width())
    count = len(files) - (len(skipped) - num_unsuitable)
    if options.sheet:
        _draw_sheet(options.sheet, sheet_predictions, count)
    places = [place for place in (options.output, options.sheet) if place not in (None, STDOUT)]
    written = f" in {' and '.join(map(str, places))}" if places else ""
    also = f", {len(skipped):,} skipped" if skipped else ""
    print(f"{count:,} predicted{written}{also}", file=sys.stderr)


def find_files(inputs: Sequence[str]) -> tuple[list[str], list[SkippedFile]]:
    """Find the files that the inputs name.

    Folders are searched recursively for image files, as in training (see `ImageWalk`). A file named directly
    is accepted with any suffix.

    Args:
        inputs: files, folders and patterns such as `photos/**/*.jpg`.

    Returns:
        The files, without duplicates, and the skipped entries: other files, broken
        links, pipes, unreadable folders.

    Raises:
        InputError: an input is missing, or a pattern matches nothing.
    """
    files: dict[str, None] = {}
    skipped: list[SkippedFile] = []
    for text in inputs:
        for path in _expand_input(text):
            for entry in ImageWalk(path).find(path) if os.path.isdir(path) else [require_regular(path)]:
                if not isinstance(entry, SkippedFile):
                    files[entry] = None
                elif entry.reason not in UNIMPORTANT:
                    skipped.append(entry)
    if len(inputs) == 1 and not glob.has_magic(inputs[0]):
        return list(files), skipped
    resolve = cache(os.path.realpath)
    unique: dict[tuple[str, str], str] = {}
    for file in files:
        unique.setdefault((resolve(os.path.dirname(file)), os.path.basename(file)), file)
    return list(unique.values()), list(dict.fromkeys(skipped))


def _expand_input(text: str) -> list[str]:
    """Return the paths that an input names; an existing path is taken literally, brackets included."""
    path = os.path.expanduser(text)
    if os.path.lexists(path):
        return [path]
    if not glob.has_magic(path):
        raise InputError(f"input={printable(text)}: no such file or folder; check the path")
    if not (found := sorted(glob.glob(path, recursive=True))):
        raise InputError(
            f"input={printable(text)}: no file matches; ** stands for any folders, * for any name"
        )
    return found


def _collect_every_nth(
    predictions: Iterator["Prediction"], collected: list["Prediction"], step: int
) -> Iterator["Prediction"]:
    """Yield all predictions and collect every `step`-th prediction; none for 0."""
    for number, prediction in enumerate(predictions):
        if step and number % step == 0:  # cloned, as the image is a view that keeps its batch in memory
            collected.append(replace(prediction, image=prediction.image.clone()))
        yield prediction


def _draw_sheet(file: str, predictions: Sequence["Prediction"], count: int) -> None:
    """Draw a contact sheet of the network's input images."""
    import torch
    from PIL import ExifTags

    from project.figures import contact_sheet

    captions = [
        printable(Path(one.file).name) + f"\n{one.probability:.2f} {printable(one.class_name)}"
        for one in predictions
    ]
    images = torch.stack([one.image for one in predictions]).numpy()
    title = f"{len(captions):,} of {count:,} images" if len(captions) < count else ""
    sheet = contact_sheet(images, captions, title=title)
    exif = sheet.getexif()
    exif[ExifTags.Base.Software] = MADE_BY
    with atomic_output(Path(file)) as path:
        sheet.save(path, format=SHEET_FORMATS[Path(file).suffix.lower()], exif=exif)


def _check_outputs(options: Options, kind: Format, files: Sequence[str]) -> None:
    """Check that the outputs can be written and replace only earlier outputs."""
    if options.sheet and Path(options.sheet).suffix.lower() not in SHEET_FORMATS:
        raise InputError(f"sheet={options.sheet}: the name must end in {', '.join(SHEET_FORMATS)}")
    if options.sheet and os.path.realpath(options.sheet) == os.path.realpath(options.output):
        raise InputError(f"sheet={options.sheet}: same file as output=…; give another name")
    for key, file in (("output", options.output), ("sheet", options.sheet)):
        if file is None or file == STDOUT:
            continue
        refuse_unwritable_output(f"{key}={file}", Path(file))
        if Path(file).exists() and os.path.realpath(file) in map(os.path.realpath, files):
            raise InputError(f"{key}={file}: one of the images of input=…; give another name")
        refuse_foreign_file(f"{key}={file}", Path(file), IMAGE if key == "sheet" else EARLIER_OUTPUT[kind])


def _print_skipped(entry: SkippedFile) -> None:
    tqdm.write(f"skipped: {printable(entry.file)}: {entry.reason}", file=sys.stderr)


def _no_prediction(options: Options, skipped: Sequence[SkippedFile]) -> InputError:
    given = printable(",".join(options.input))
    if not skipped:
        return InputError(f"input={given}: no files there (hidden ones do not count)")
    return DataError(f"input={given}: none of {plural(len(skipped), 'file')} could be predicted; see above")
