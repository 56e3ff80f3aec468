"""ONNX files: graphs that onnxruntime and many other programs run, in float32 and int8."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from project.inference.export.benchmark import ImageSample
from project.inference.export.torch_program import capture, describe_error, quiet
from project.inference.export.wrapper import ExportError, ExportMetadata, PredictFunction

INPUT = "images"
MAX_BYTES = 2**31 - 2**20
"""Weights that fit one file: protobuf's limit of 2 GB, with room for the graph."""
NORMALIZATION = {"shift", "scale"}
"""Constants of the normalization, which are not quantized."""
DYNAMIC_TYPES = ("Gemm", "MatMul", "LSTM")
"""Operations of dynamic int8, without convolution, which is several times slower than float32."""


def write(model: nn.Module, file: Path, metadata: ExportMetadata) -> None:
    """Write a network as an ONNX file, with the metadata in `metadata_props`."""
    program = capture(model, metadata.input_shape)
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size > MAX_BYTES:
        raise ExportError(f"the network's {size / 1e9:.1f} GB are more than one .onnx file may hold (2 GB)")
    try:
        graph = _translate(program, metadata.output)
    except Exception as error:  # the exporter's own classes, and whatever its passes raise
        cause = error.__cause__ or error
        raise ExportError(f"torch.onnx cannot export this network: {describe_error(cause)}") from error
    _save(graph, file, metadata, full_check=True)


def _translate(program: torch.export.ExportedProgram, output: str) -> Any:
    """Return the program as an ONNX model without source locations."""
    with quiet():
        exported = torch.onnx.export(
            program, (), input_names=[INPUT], output_names=[output], dynamo=True, verbose=False
        )
    assert exported is not None
    model = exported.model_proto
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info):
        del part.metadata_props[:]
    return model


def _save(graph: Any, file: Path, metadata: ExportMetadata, *, full_check: bool = False) -> None:
    import onnx

    del graph.metadata_props[:]
    for key, value in metadata.entries().items():
        graph.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(graph, full_check=full_check)
    file.write_bytes(graph.SerializeToString())


def read(file: Path, num_threads: int) -> PredictFunction:
    """Load a file in onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # leaves idle cores to other programs
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def predict(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])

    return predict


read_int8 = read


def quantize(
    model: nn.Module, source: Path, file: Path, metadata: ExportMetadata, images: ImageSample | None
) -> None:
    """Write a copy of a float32 file with int8 weights.

    Weights use 7 bits: with 8, sums of products overflow on CPUs without VNNI instructions.
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
            if images is None:
                types = list(DYNAMIC_TYPES)
                quantization.quantize_dynamic(str(prepared), str(file), op_types_to_quantize=types, **options)
            else:
                nodes = onnx.load(prepared).graph.node
                quantization.quantize_static(
                    str(prepared),
                    str(file),
                    _CalibrationReader(images),
                    activation_type=quantization.QuantType.QUInt8,
                    nodes_to_exclude=[node.name for node in nodes if NORMALIZATION & set(node.input)],
                    **options,
                )
        except Exception as error:
            raise ExportError(f"onnxruntime cannot quantize this network: {describe_error(error)}") from error
        finally:
            prepared.unlink(missing_ok=True)
    _save(onnx.load(file), file, metadata)


class _CalibrationReader:
    """Calibration images in onnxruntime's protocol."""

    def __init__(self, images: ImageSample) -> None:
        self._batches = images.pixels()

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch.numpy()}
