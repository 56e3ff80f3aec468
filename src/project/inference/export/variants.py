"""The files of an export: the network as it is, and smaller ones, each written by its format."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from project.inference.export import onnx_graph, onnx_int8, torch_int8, torch_program
from project.inference.export.calibration_data import Samples
from project.inference.export.formats import Description, Predictor
from project.inference.export.options import FLOAT32, STATIC
from project.inference.export.wrapper import Deployed


@dataclass(frozen=True)
class Writer:
    """Writes and reads the files of one format.

    Args:
        format: `torch_export` or `onnx`.
        description: of the float32 file.
        calibration: gets training images for static int8.
        threads: of the CPU, for onnxruntime.
    """

    format: str
    description: Description
    calibration: Callable[[], Samples]
    threads: int

    def float32(self, model: Deployed, file: Path, variant: str = FLOAT32) -> Predictor:
        """Write a network in single precision; return what the file's network predicts."""
        description = replace(self.description, variant=variant)
        if self.format == "onnx":
            onnx_graph.write(model, file, description)
            return onnx_graph.read(file, self.threads)
        torch_program.write(model, file, description)
        return torch_program.read(file)

    def int8(self, model: Deployed, source: Path, file: Path, variant: str) -> Predictor:
        """Write a network in int8; return what the file's network predicts.

        Args:
            model: the network.
            source: its float32 file.
            file: to be written.
            variant: `dynamic_int8` or `static_int8`.
        """
        description = replace(self.description, variant=variant)
        samples = self.calibration() if variant == STATIC else None
        if self.format == "onnx":
            onnx_int8.quantize(source, file, description, samples)
            return onnx_graph.read(file, self.threads)
        # Kernels of int8 choose the order of memory themselves; a given one is in their way.
        plain = model.with_network(model.network, torch.contiguous_format)
        torch_int8.quantize(plain, file, description, samples)
        return torch_int8.load(file)

    def lowered(self, file: Path, batch: int) -> Predictor | None:
        """What an int8 file of this format does with this CPU's int8 kernels in it, where that is a step of
        its own; None where it is not.
        """
        if self.format == "onnx" or not torch_int8.can_lower():
            return None
        return torch_int8.lower(file, self.description.input_shape, batch)
