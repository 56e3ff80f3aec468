"""int8 by onnxruntime's quantizer: a quarter of the size, and faster on CPUs."""

from pathlib import Path
from typing import Any

from project.inference.export.calibration_data import Samples
from project.inference.export.formats import INPUT, Description, ExportError
from project.inference.export.onnx_graph import describe
from project.inference.export.torch_program import quiet, shorten

NORMALIZING = {"shift", "scale"}
"""Weights of the operations that normalize images: these stay as they are."""
DYNAMIC_TYPES = ("Gemm", "MatMul", "LSTM")
"""onnxruntime's integer convolution is several times slower than its float32 one."""


def quantize(source: Path, file: Path, description: Description, calibration: Samples | None) -> None:
    """Write a copy of a float32 graph with int8 weights.

    Weights use 7 bits: with 8, sums of products overflow on CPUs without VNNI instructions.

    Args:
        source: the float32 file.
        file: to be written.
        description: put into it.
        calibration: training images, from which the ranges of all that is computed are taken (static); None
            has them taken from each batch, for linear and recurrent layers alone (dynamic).

    Raises:
        ExportError: onnxruntime cannot quantize this graph.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = file.with_suffix(".prepared")
    options: dict[str, Any] = {"weight_type": quantization.QuantType.QInt8, "per_channel": True}
    options["reduce_range"] = True
    with quiet():
        try:
            quant_pre_process(str(source), str(prepared))
            if calibration is None:
                types = list(DYNAMIC_TYPES)
                quantization.quantize_dynamic(str(prepared), str(file), op_types_to_quantize=types, **options)
            else:
                nodes = onnx.load(prepared).graph.node
                kept = [node.name for node in nodes if NORMALIZING & set(node.input)]
                quantization.quantize_static(
                    str(prepared),
                    str(file),
                    _Reader(calibration),
                    activation_type=quantization.QuantType.QUInt8,
                    nodes_to_exclude=kept,
                    **options,
                )
        except Exception as error:
            raise ExportError(f"onnxruntime cannot quantize this network: {shorten(error)}") from error
        finally:
            prepared.unlink(missing_ok=True)
    graph = onnx.load(file)
    describe(graph, description)
    onnx.checker.check_model(graph)
    file.write_bytes(graph.SerializeToString())


class _Reader:
    """Calibration images as onnxruntime asks for them."""

    def __init__(self, samples: Samples) -> None:
        self._batches = samples.pixels()

    def get_next(self) -> dict[str, Any] | None:
        """The next batch; None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch.numpy()}
