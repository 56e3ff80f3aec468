"""int8 by torchao, quantizing what `torch.export` traced (PT2E): a quarter of the size.

The file holds int8 weights and tells where numbers are rounded to 8 bits; run as it is, PyTorch computes in
float32 between, and is slower for it. `lower` puts oneDNN's int8 kernels in: faster than float32 on CPUs.
"""

import platform
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from project.inference.export.calibration_data import Samples
from project.inference.export.formats import Description, ExportError, Predictor, blank
from project.inference.export.torch_program import capture, quiet, read, save, shorten


def quantize(model: nn.Module, file: Path, description: Description, calibration: Samples | None) -> None:
    """Write a network with int8 weights as a `.pt2` file. To load it, `torchao.quantization.pt2e` must have
    been imported, which knows its operations.

    Args:
        model: maps images (B, C, H, W) uint8 to logits; in evaluation mode.
        file: to be written.
        description: put into it.
        calibration: training images, from which the ranges of all that is computed are taken (static); None
            has them taken from each batch, for linear layers alone (dynamic).

    Raises:
        ExportError: torchao cannot quantize this network.
    """
    if description.test_views != "none":
        raise ExportError(
            "torchao quantizes no network that is used for several views of an image; give views=none, "
            "or format=onnx"
        )
    shape = description.input_shape
    traced = capture(model, shape).module()
    with quiet(), torch.no_grad():
        try:
            quantized = _quantize(traced, calibration, blank(shape))
        except Exception as error:
            raise ExportError(f"torchao cannot quantize this network: {shorten(error)}") from error
    save(capture(quantized, shape), file, description)


def _quantize(traced: fx.GraphModule, calibration: Samples | None, example: Tensor) -> fx.GraphModule:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    if calibration is None:
        dynamic = x86.get_default_x86_inductor_quantization_config(is_dynamic=True)
        quantizer.set_module_type_qconfig(nn.Linear, dynamic)
    else:
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(traced, quantizer)
    # Without calibration one batch has to pass as well: the weights are measured on its way.
    for pixels in [example] if calibration is None else calibration.pixels():
        prepared(pixels)
    converted = convert_pt2e(prepared)
    _drop_unused(converted)
    return converted


def _drop_unused(graph: fx.GraphModule) -> None:
    """Remove weights that no operation uses any more: those in float32 would be written too."""
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    named = [name for name, _ in (*graph.named_parameters(), *graph.named_buffers())]
    for name in set(named) - used:
        parent, _, attribute = name.rpartition(".")
        delattr(graph.get_submodule(parent), attribute)


def load(file: Path) -> Predictor:
    """Load a file that `quantize` made, to run as it is."""
    with quiet():
        import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401  (its operations)

        return read(file)


def can_lower() -> bool:
    """Whether this machine has the kernels that `lower` uses."""
    return platform.machine().lower() in ("x86_64", "amd64") and torch.backends.mkldnn.is_available()


def lower(file: Path, shape: tuple[int, int, int], batch: int) -> Predictor:
    """Load a file that `quantize` made, with int8 kernels of oneDNN in it (x86 CPUs).

    Args:
        file: the file.
        shape: (C, H, W) of an image.
        batch: images of a call; the kernels are chosen for it. What is fewer is filled up.

    Raises:
        ExportError: torchao cannot do it.
    """
    with quiet(), torch.no_grad():
        from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86

        program = torch.export.load(file).module()
        try:
            lowered = lower_pt2e_quantized_to_x86(program, (blank(shape, batch),))
        except Exception as error:
            raise ExportError(f"torchao cannot lower this network: {shorten(error)}") from error
    for node in lowered.graph.nodes:  # oneDNN's outputs lie in channels-last order, which views do not take
        if node.target == torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
    lowered.recompile()

    def predict(images: Tensor) -> Tensor:
        outputs = []
        with torch.no_grad():
            for part in images.split(batch):
                missing = batch - len(part)
                filled = torch.cat([part, part.new_zeros(missing, *shape)]) if missing else part
                outputs.append(lowered(filled)[: len(part)])
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    return predict
