"""ONNX: graphs that onnxruntime and many other programs run."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from project.inference.export.formats import INPUT, Description, ExportError, Predictor
from project.inference.export.torch_program import capture, quiet, shorten

SINGLE_FILE_BYTES = 2**31 - 2**20
"""What fits one file: protobuf's limit, with room for the graph."""


def write(model: nn.Module, file: Path, description: Description) -> None:
    """Write a network as an `.onnx` file; its `metadata_props` say what it is.

    Raises:
        ExportError: ONNX has no operation for a part of it, or it is larger than an `.onnx` file may be.
    """
    import onnx

    program = capture(model, description.input_shape)
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size > SINGLE_FILE_BYTES:
        raise ExportError(f"the network's {size / 1e9:.1f} GB are more than one .onnx file may hold (2 GB)")
    try:
        graph = _translate(program, description.output)
    except Exception as error:  # of the exporter's own kinds, and whatever its passes raise
        cause = error.__cause__ or error
        raise ExportError(f"torch.onnx cannot export this network: {shorten(cause)}") from error
    describe(graph, description)
    onnx.checker.check_model(graph, full_check=True)
    file.write_bytes(graph.SerializeToString())


def describe(graph: Any, description: Description) -> None:
    """Put what a graph is into its `metadata_props`, in place of what tracing left there."""
    del graph.metadata_props[:]
    for key, value in description.entries().items():
        graph.metadata_props.add(key=key, value=value)


def read(file: Path, threads: int) -> Predictor:
    """Load a file in onnxruntime, for so many CPU threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others need the cores too
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def predict(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])

    return predict


def _translate(program: torch.export.ExportedProgram, output: str) -> Any:
    """The program as an ONNX model, without the traces of where its nodes are from."""
    with quiet():
        exported = torch.onnx.export(
            program, (), input_names=[INPUT], output_names=[output], dynamo=True, verbose=False
        )
    assert exported is not None
    graph = exported.model_proto
    for part in (*graph.graph.node, *graph.graph.input, *graph.graph.output, *graph.graph.value_info):
        del part.metadata_props[:]
    return graph
