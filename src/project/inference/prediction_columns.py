"""Predictions of supervised tasks as columns of a table: for an evaluated split, images, or table rows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from torch import Tensor

from project.datamodules.base import Split, SupervisedDataModule
from project.datamodules.loading.image_decoder import decode_image
from project.datamodules.loading.loader import normalization
from project.datamodules.storage import tables
from project.datamodules.table_rows import table_numbers
from project.datamodules.tabular import Tabular
from project.inference.load_run import TrainedModule
from project.inference.predict.predictions import decoding_problem
from project.inference.predict.writers import DIGITS
from project.runtime.text import printable


@runtime_checkable
class DescribesPredictions(Protocol):
    """LightningModule whose predictions are cells of a table, such as `SupervisedModule`."""

    def unpack(self, batch: Any) -> tuple[Any, Any]:
        """Return the inputs and the targets of a batch."""
        ...

    def prediction_columns(self, outputs: Any, names: Sequence[str]) -> Mapping[str, Sequence[Any]]:
        """Return the predictions for B inputs: B cells by column name."""
        ...

    def target_columns(self, targets: Any, names: Sequence[str]) -> Mapping[str, Sequence[Any]]:
        """Return the targets of B inputs: B cells by column name."""
        ...


def output_names(trained: TrainedModule, outputs: Any) -> list[str]:
    """Return a name for each column of outputs (B, K): those of the data's classes, labels or values."""
    names = [printable(str(name)) for name in trained.data_state.get("class_names", [])]
    is_matrix = isinstance(outputs, Tensor) and outputs.ndim == 2
    return list(map(str, range(outputs.shape[1]))) if is_matrix and len(names) != outputs.shape[1] else names


class PredictionCollector(L.Callback):
    """Collects targets and predictions of an evaluation, from the outputs that each step returns.

    Args:
        trained: the run, whose module describes its predictions.
    """

    def __init__(self, trained: TrainedModule) -> None:
        self.trained = trained
        self._columns: dict[str, list[Any]] = {}

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *arguments: Any
    ) -> None:
        if outputs is None:  # a step of the user's own
            return
        names = output_names(self.trained, outputs)
        targets = pl_module.target_columns(pl_module.unpack(batch)[1], names)
        for name, cells in {**targets, **pl_module.prediction_columns(outputs, names)}.items():
            self._columns.setdefault(name, []).extend(cells)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *arguments: Any
    ) -> None:
        self.on_test_batch_end(trainer, pl_module, outputs, batch)

    def table(self, split: Split) -> dict[str, Sequence[Any]]:
        """Return the columns: file (if the inputs have files), index, targets, predictions; or none."""
        if not self._columns:
            return {}
        count = len(next(iter(self._columns.values())))
        data = self.trained.datamodule
        files = data.files(split) if isinstance(data, SupervisedDataModule) else None
        named = {} if files is None else {"file": [printable(file) for file in files[:count]]}
        return {**named, "index": range(count), **self._columns}


class ImagePredictor:
    """Reads images as in training, and describes the predictions for them (see `PredictsFiles`).

    Args:
        trained: a run whose inputs are images, and whose module describes its predictions.
    """

    def __init__(self, trained: TrainedModule) -> None:
        self.trained = trained
        self._shift, self._scale = normalization(trained.data_state["mean"], trained.data_state["std"])

    def preprocess(self, source: Any) -> Tensor:
        """Return a normalized image (C, H, W).

        Raises:
            ValueError: the file cannot be decoded.
        """
        data = self.trained.config["data"]
        try:
            image = decode_image(
                str(source), tuple(data["input_shape"]), may_scale=True, white_level=data.get("white_level")
            )
        except Exception as error:  # decoders raise anything on damaged files
            raise ValueError(decoding_problem(error.__cause__ or error)) from error
        return (image - self._shift) * self._scale

    def decode(self, outputs: Any) -> dict[str, Any]:
        """Return the prediction for one input by column, from its outputs (K,)."""
        names = output_names(self.trained, outputs[None])
        columns = self.trained.module.prediction_columns(outputs[None], names)
        return {name: _rounded(cells[0]) for name, cells in columns.items()}


def predicts_images(trained: TrainedModule) -> bool:
    """Return True for a module that describes its predictions for images."""
    is_of_images = len(trained.config["data"].get("input_shape") or ()) == 3 and "mean" in trained.data_state
    return is_of_images and isinstance(trained.module, DescribesPredictions)


def predict_table(
    trained: TrainedModule, file: str, batch_size: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Yield file, row number (from 0) and predictions for each row of a table with the features of training.

    Raises:
        InputError: the table lacks a feature.
        DataError: the file is not a table, or a cell is not a number.
    """
    data = trained.datamodule
    table = tables.read_table(file, "input")
    features = table_numbers(table, "input", data.feature_columns)  # N, F
    mean, std = (torch.tensor(trained.data_state[name]) for name in ("mean", "std"))
    network = trained.module.to(device)
    for start in range(0, len(features), batch_size):
        with torch.inference_mode():
            outputs = network(((features[start : start + batch_size] - mean) / std).to(device)).cpu()
        predicted = trained.module.prediction_columns(outputs, output_names(trained, outputs))
        for place in range(len(outputs)):
            row = {name: _rounded(cells[place]) for name, cells in predicted.items()}
            yield {"file": file, "row": start + place, **row}


def _rounded(cell: Any) -> Any:
    """Return a number with the digits of single precision; other cells unchanged."""
    return float(f"{cell:.{DIGITS}g}") if isinstance(cell, float) else cell


def predicts_tables(trained: TrainedModule) -> bool:
    """Return True for a module that describes its predictions for rows of features."""
    return isinstance(trained.datamodule, Tabular) and isinstance(trained.module, DescribesPredictions)
