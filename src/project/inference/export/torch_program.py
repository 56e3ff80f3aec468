"""`torch.export` files: programs that PyTorch runs without their source code, in float32 and int8.

The int8 files are quantized by torchao (PT2E) to a quarter of the size. They contain int8 weights and the
quantization of activations. Without lowering, PyTorch computes in float32, more slowly than the original.
torchao's `lower_pt2e_quantized_to_x86` inserts oneDNN's int8 kernels, which are faster than float32 on CPUs.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from project.errors import summarize
from project.inference.export.benchmark import ImageSample
from project.inference.export.wrapper import ExportError, ExportMetadata, ExportWrapper, PredictFunction


def capture(model: nn.Module, shape: tuple[int, int, int]) -> ExportedProgram:
    """Trace a network for any batch size."""
    with quiet(), _plain_attention():
        try:
            return torch.export.export(model, (blank_images(shape),), dynamic_shapes=({0: Dim("batch")},))
        except Exception as error:  # tracing runs the network, which may raise anything
            raise ExportError(f"torch.export cannot trace this network: {describe_error(error)}") from error


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Trace attention as basic operations, since no format supports the fused operation."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def write(model: nn.Module, file: Path, metadata: ExportMetadata) -> None:
    """Write a network as a `.pt2` file, with the metadata in its extra files."""
    program = capture(model, metadata.input_shape)
    with quiet():
        try:
            torch.export.save(program, file, extra_files=metadata.entries())
        except OSError:
            raise
        except Exception as error:
            raise ExportError(f"torch.export cannot write this network: {describe_error(error)}") from error


def read(file: Path, num_threads: int = 1) -> PredictFunction:
    """Load a file in float32."""
    with quiet():
        module = torch.export.load(file).module()

    def predict(images: Tensor) -> Tensor:
        with torch.no_grad():
            return module(images)

    return predict


def quantize(
    model: ExportWrapper, source: Path, file: Path, metadata: ExportMetadata, images: ImageSample | None
) -> None:
    """Quantize a network to int8 and write a `.pt2` file; loading it needs `torchao.quantization.pt2e`."""
    if metadata.tta != "none":
        raise ExportError(
            "torchao cannot quantize a network with test-time augmentation; give tta=none, or format=onnx"
        )
    shape = metadata.input_shape
    # int8 kernels choose their own memory format; a fixed one slows them down.
    traced = capture(model.with_network(model.network, torch.contiguous_format), shape).module()
    with quiet(), torch.no_grad():
        try:
            quantized = _quantize(traced, images, blank_images(shape))
        except Exception as error:
            raise ExportError(f"torchao cannot quantize this network: {describe_error(error)}") from error
    write(quantized, file, metadata)


def _quantize(traced: fx.GraphModule, images: ImageSample | None, example: Tensor) -> fx.GraphModule:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    if images is None:
        dynamic = x86.get_default_x86_inductor_quantization_config(is_dynamic=True)
        quantizer.set_module_type_qconfig(nn.Linear, dynamic)
    else:
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(traced, quantizer)
    # Dynamic quantization needs a batch as well: weight ranges are measured in the forward pass.
    for pixels in [example] if images is None else images.pixels():
        prepared(pixels)
    converted = convert_pt2e(prepared)
    _drop_unused(converted)
    return converted


def _drop_unused(graph: fx.GraphModule) -> None:
    """Remove unused weights; the file would otherwise also contain the float32 weights."""
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    names = {name for name, _ in (*graph.named_parameters(), *graph.named_buffers())}
    for name in names - used:
        parent, _, attribute = name.rpartition(".")
        delattr(graph.get_submodule(parent), attribute)


def read_int8(file: Path, num_threads: int = 1) -> PredictFunction:
    """Load an int8 file, which computes in float32 between quantized operations."""
    with quiet():
        import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401  (registers the quantized operations)

        return read(file)


def blank_images(shape: tuple[int, int, int], batch: int = 2) -> Tensor:
    """Return black images (batch, C, H, W) as a tracing example, which files may store."""
    return torch.zeros(batch, *shape, dtype=torch.uint8)


def describe_error(error: BaseException) -> str:
    """Return an error's class and the beginning of its message."""
    return f"{type(error).__name__}: {summarize(error)}"


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the warnings and log messages of libraries."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
