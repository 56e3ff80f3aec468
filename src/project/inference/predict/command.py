"""What `scripts/predict.py` does. Imports torch only when the command line is right."""

import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from project.datamodules.storage.image_files import PassedOver
from project.errors import DataError, InputError
from project.inference.predict.input_files import find_files
from project.inference.predict.options import Options
from project.inference.predict.table import TableLayout
from project.inference.predict.writers import (
    SCREEN,
    Format,
    choose_format,
    make_writer,
    opened,
    replacing,
)
from project.inference.run_config import refuse_wrong
from project.runs.earlier_output import MADE_BY, PICTURE, PREDICTIONS, refuse_foreign
from project.runs.find import find_trained
from project.runtime import training_imports
from project.runtime.text import shown
from project.runtime.write_probe import refuse_unwritable_output

if TYPE_CHECKING:
    from project.inference.predict.predictions import Prediction

PICTURES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
MOST_ON_SHEET = 400
"""Images of a contact sheet; of more files, every second, third, … one."""


def predict_files(options: Options) -> None:
    """Do what the command line says.

    Raises:
        InputError: it is wrong.
        DataError: no file could be predicted.
    """
    kind = choose_format(options.output, options.format)
    run = find_trained(options.run, options.outputs)
    files, bad = find_files(options.input)
    _check_places(options, kind, files)
    refuse_wrong(run, options.weights, ())
    for entry in bad:
        _tell(entry)
    if not files:
        raise _nothing(options, bad)

    warnings.filterwarnings("ignore", module="PIL")  # of images that it reads all the same
    training_imports.defer()
    from project.inference.load_run import load
    from project.inference.predict.predictions import predict  # imports torch

    trained = load(run, options.weights)
    training_imports.settle()
    top = min(options.top, len(trained.class_names))

    def pass_over(entry: PassedOver) -> None:
        bad.append(entry)
        _tell(entry)

    predictions = predict(
        trained,
        files,
        top=top,
        batch_size=options.batch_size,
        views=options.views,
        accelerator=options.accelerator,
        threads=options.threads,
        pass_over=pass_over,
    )
    print(f"{run.shown}, {trained.checkpoint.name}", file=sys.stderr)
    sheet = Sheet(len(files)) if options.sheet else None
    count = 0
    with opened(options.output, kind) as stream:
        width = shutil.get_terminal_size().columns
        writer = make_writer(kind, stream, lambda: TableLayout(files, trained.class_names, top, width), top)
        hidden = None if options.output != SCREEN else True  # None: unless standard error is a terminal
        for prediction in tqdm(predictions, total=len(files), unit=" images", leave=False, disable=hidden):
            count += 1
            writer.write(prediction)
            if sheet is not None:
                sheet.take(prediction)
        if not count:
            raise _nothing(options, bad)
        writer.end()
    if sheet is not None and options.sheet:
        sheet.draw(options.sheet, count)
    _sum_up(options, count, bad)


class Sheet:
    """Gathers what a contact sheet shows.

    Args:
        count: of the files; where there are many, images are taken at equal distances.
    """

    def __init__(self, count: int) -> None:
        self._every = -(-count // MOST_ON_SHEET)
        self._seen = 0
        self._taken: list[Prediction] = []

    def take(self, prediction: "Prediction") -> None:
        """Keep a prediction if it is its turn."""
        if self._seen % self._every == 0:  # a copy: the image is part of a batch
            self._taken.append(replace(prediction, image=prediction.image.clone()))
        self._seen += 1

    def draw(self, file: str, count: int) -> None:
        """Draw the images as the network saw them.

        Args:
            file: written.
            count: of all predictions.
        """
        import torch
        from PIL import ExifTags

        from project.figures.contact_sheet import contact_sheet

        captions = [
            f"{shown(Path(one.file).name)}\n{one.probability:.2f} {shown(one.class_name)}"
            for one in self._taken
        ]
        images = torch.stack([one.image for one in self._taken]).numpy()
        title = f"{len(captions):,} of {count:,} images" if len(captions) < count else ""
        picture = contact_sheet(images, captions, title=title)
        with replacing("sheet", file) as path:
            exif = picture.getexif()
            exif[ExifTags.Base.Software] = MADE_BY
            picture.save(path, format=PICTURES[Path(file).suffix.lower()], exif=exif)


def _check_places(options: Options, kind: Format, files: Sequence[str]) -> None:
    """Refuse outputs that cannot be written, or that would overwrite something else.

    Raises:
        InputError: there is one.
    """
    if options.sheet and Path(options.sheet).suffix.lower() not in PICTURES:
        raise InputError(f"sheet={options.sheet}: end its name in {', '.join(PICTURES)}")
    if options.sheet and os.path.realpath(options.sheet) == os.path.realpath(options.output):
        raise InputError(f"sheet={options.sheet}: the file of output=…; give another name")
    for key, file in (("output", options.output), ("sheet", options.sheet)):
        if file is None or file == SCREEN:
            continue
        refuse_unwritable_output(f"{key}={file}", Path(file))
        if Path(file).exists() and os.path.realpath(file) in map(os.path.realpath, files):
            raise InputError(f"{key}={file}: one of the images of input=…; give another name")
        refuse_foreign(f"{key}={file}", Path(file), PICTURE if key == "sheet" else PREDICTIONS[kind])


def _tell(entry: PassedOver) -> None:
    tqdm.write(f"passed over: {shown(entry.file)}: {entry.reason}", file=sys.stderr)


def _nothing(options: Options, bad: Sequence[PassedOver]) -> InputError:
    """What is raised when there is no prediction."""
    given = shown(",".join(options.input))
    if not bad:
        return InputError(f"input={given}: no files there (hidden ones do not count)")
    return DataError(f"input={given}: none of {len(bad):,} files could be predicted, as told above")


def _sum_up(options: Options, count: int, bad: Sequence[PassedOver]) -> None:
    places = [place for place in (options.output, options.sheet) if place not in (None, SCREEN)]
    written = f" in {' and '.join(map(str, places))}" if places else ""
    passed_over = f", {len(bad):,} passed over" if bad else ""
    print(f"{count:,} predicted{written}{passed_over}", file=sys.stderr)
