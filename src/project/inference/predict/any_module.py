"""Predictions of a run of any task.

Files are predicted by the module's `preprocess` and `decode`, or by its `prediction_columns`; a loader by its
`predict_step`.
"""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from project.datamodules.storage.image_files import SkippedFile
from project.errors import DataError, InputError, one_line
from project.inference.load_run import TrainedModule, explain_lightning_errors, load_module
from project.inference.options import require_accelerator
from project.inference.predict.writers import Format, open_output
from project.inference.prediction_columns import (
    ImagePredictor,
    predict_table,
    predicts_images,
    predicts_tables,
)
from project.runs.run_folder import RunFolder
from project.runtime.csv_files import escape_all
from project.runtime.text import plural, printable

if TYPE_CHECKING:
    from project.inference.predict.command import Options

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError)
"""Exceptions by which `preprocess` rejects a file; the file is skipped."""


@runtime_checkable
class PredictsFiles(Protocol):
    """LightningModule that predicts from files."""

    def preprocess(self, source: Any) -> Tensor:
        """Return the input of the network, without batch dimension, for a path or a PIL image."""
        ...

    def decode(self, outputs: Any) -> dict[str, Any]:
        """Return the results of one input by name, from the outputs of `forward` without batch dimension."""
        ...


def predict_any(
    options: "Options", run: RunFolder, kind: Format, files: Sequence[str], skipped: list[SkippedFile]
) -> None:
    """Predict with a run of any task; write a row for each input.

    Raises:
        InputError: the task lacks the methods that the options need.
    """
    for key in ("tta", "sheet"):
        if (value := getattr(options, key)) is not None:
            raise InputError(f"{key}={value}: available for image classifiers only; leave it out")
    require_accelerator(options.accelerator)
    trained = load_module(run, options.weights)
    if options.input:
        rows = _predict_files(trained, files, skipped, options)
    else:
        rows = _predict_loader(trained, options)
    print(f"{run.shown}, {trained.checkpoint.name}", file=sys.stderr)
    first = next(rows, None)
    if first is None:
        expected = " (expected images, or folders of images)" if predicts_images(trained) else ""
        raise DataError(
            f"input={printable(','.join(options.input))}: no input could be predicted{expected}; give others"
        )
    with open_output(options.output, kind) as stream:
        count = write_rows(kind, stream, chain([first], rows))
    also = f", {len(skipped):,} skipped" if skipped else ""
    print(f"{plural(count, 'row')} predicted{also}", file=sys.stderr)


def write_rows(kind: Format, stream: TextIO, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows as CSV, JSON, or (for `jsonl` and `table`) JSON Lines; return their number.

    A CSV file has the columns of the first row; cells that are neither numbers nor text contain JSON.
    """
    count, writer, columns = 0, csv.writer(stream, lineterminator="\n"), list[str]()
    for count, row in enumerate(rows, start=1):
        if kind == "csv":
            if not columns:
                writer.writerow(columns := list(row))
            cells = [row.get(name, "") for name in columns]
            plain = [cell if isinstance(cell, str | int | float) else json.dumps(cell) for cell in cells]
            writer.writerow(escape_all(plain))
        else:
            start = "" if kind != "json" else "[\n" if count == 1 else ",\n"
            end = "" if kind == "json" else "\n"
            stream.write(start + json.dumps(row, ensure_ascii=False) + end)
    if kind == "json" and count:
        stream.write("\n]\n")
    return count


def _predict_files(
    trained: TrainedModule, files: Sequence[str], skipped: list[SkippedFile], options: "Options"
) -> Iterator[dict[str, Any]]:
    module = trained.module
    if isinstance(module, PredictsFiles):
        return _forward_files(trained, module, files, skipped, options)
    if predicts_tables(trained):
        device = trained.trainer(accelerator=options.accelerator).strategy.root_device
        rows = (predict_table(trained, file, options.batch_size, device) for file in files)
        return chain.from_iterable(rows)
    if predicts_images(trained):
        return _forward_files(trained, ImagePredictor(trained), files, skipped, options)
    task = type(module).__name__
    lacking = " and ".join(name for name in ("preprocess", "decode") if not hasattr(module, name))
    raise InputError(
        f"input={printable(','.join(options.input))}: {task} has no {lacking}; add them to predict "
        "files, or leave input out to predict the data module's loader"
    )


def _forward_files(
    trained: TrainedModule,
    reader: PredictsFiles,
    files: Sequence[str],
    skipped: list[SkippedFile],
    options: "Options",
) -> Iterator[dict[str, Any]]:
    device = trained.trainer(accelerator=options.accelerator).strategy.root_device
    network: Any = trained.module.to(device)
    waiting: list[tuple[str, Tensor]] = []

    def flush() -> Iterator[dict[str, Any]]:
        with torch.inference_mode():
            outputs = network(torch.stack([tensor for _, tensor in waiting]).to(device))
        for place, (file, _) in enumerate(waiting):
            one = apply_to_collection(outputs, Tensor, lambda tensor, at=place: tensor[at].cpu())
            yield {"file": file, **_plain(reader.decode(one))}
        waiting.clear()

    for file in files:
        try:
            tensor = reader.preprocess(Path(file))
        except UNREADABLE as error:
            skipped.append(SkippedFile(file, one_line(error)))
            print(f"skipped: {printable(file)}: {one_line(error)}", file=sys.stderr)
            continue
        if waiting and tensor.shape != waiting[0][1].shape:
            yield from flush()
        waiting.append((file, tensor))
        if len(waiting) == options.batch_size:
            yield from flush()
    if waiting:
        yield from flush()


def _predict_loader(trained: TrainedModule, options: "Options") -> Iterator[dict[str, Any]]:
    """Yield the rows of `predict_step` over the predict loader of the data module, else its test loader."""
    module, data = trained.module, trained.datamodule
    task = type(module).__name__
    if not is_overridden("predict_step", module):
        own = "preprocess and decode" if not isinstance(module, PredictsFiles) else ""
        needs = f"has no predict_step (and no {own})" if own else "predicts files only"
        raise InputError(f"input=: {task} {needs}; give input=FILE, or add a predict_step")
    names = [name for name in ("predict_dataloader", "test_dataloader") if is_overridden(name, data)]
    if not names:
        raise InputError(
            f"input=: {type(data).__name__} has no predict_dataloader and no test_dataloader; add one"
        )
    if names[0] == "test_dataloader":
        data.predict_dataloader = data.test_dataloader
        setup = data.setup
        data.setup = lambda stage: setup("test" if stage == "predict" else stage)
    L.seed_everything(trained.config["seed"], workers=True, verbose=False)
    trainer = trained.trainer(accelerator=options.accelerator)
    with explain_lightning_errors():
        batches: Any = trainer.predict(
            module, datamodule=data, ckpt_path=str(trained.checkpoint), weights_only=True
        )
    return _rows_of(batches or [])


def _rows_of(batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Yield a row for each input; outputs without a common batch dimension give a row for each batch."""
    row = 0
    for number, outputs in enumerate(batches):
        named = outputs if isinstance(outputs, dict) else {"output": outputs}
        values = list(named.values())
        sizes = {len(value) for value in values if isinstance(value, Tensor | list | tuple) and _ndim(value)}
        if len(sizes) == 1 and all(
            isinstance(value, Tensor | list | tuple) and _ndim(value) for value in values
        ):
            for place in range(sizes.pop()):
                yield {"row": row, **_plain({name: value[place] for name, value in named.items()})}
                row += 1
        else:
            yield {"batch": number, **_plain(named)}


def _ndim(value: Any) -> int:
    return value.ndim if isinstance(value, Tensor) else 1


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return values that JSON can hold: tensors become numbers and lists.

    Raises:
        InputError: a value is of another kind.
    """
    listed = apply_to_collection(values, Tensor, lambda tensor: tensor.detach().cpu().float().tolist())
    try:
        json.dumps(listed)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"run: the predictions cannot be written as JSON ({one_line(error)}); return tensors, numbers, "
            "text, lists and dicts"
        ) from error
    plain: dict[str, Any] = listed
    return plain
