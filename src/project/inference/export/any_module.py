"""Export of a run of any task: its network, traced with the module's example input."""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.export import Dim

from project.errors import InputError
from project.inference.export.options import FLOAT32, FORMATS, Options, choose_variants
from project.inference.export.torch_program import describe_error, quiet
from project.inference.export.wrapper import ExportError
from project.inference.load_run import TrainedModule, load_module
from project.runs.run_folder import RunFolder
from project.runtime.atomic_files import replace_text
from project.runtime.output_files import missing_folders

Inputs = tuple[Tensor, ...]


def export_any(options: Options, run: RunFolder, folder: Path) -> None:
    """Export the network of a run of any task in float32, and check its outputs for the example input.

    The network is the module's `forward`, or its attribute `network` if it defines no `forward`. The example
    is `example_input_array` or `example_input`: a tensor or a tuple of tensors with a batch dimension.
    `data.input_shape` replaces a missing example.

    Raises:
        InputError: the task has no example input or no network, or an option needs images.
        ExportError: the network cannot be traced, or its file computes other outputs.
    """
    from project.inference.export.command import file_name, refuse_foreign

    if wanted := choose_variants(options.variants):
        raise InputError(f"variants={','.join(wanted)}: available for image classifiers only; leave it out")
    if options.tta is not None:
        raise InputError(f"tta={options.tta}: available for image classifiers only; leave it out")
    if options.output_type != "logits":
        raise InputError(f"output_type={options.output_type}: available for image classifiers only")
    refuse_foreign(folder, options.format, [])
    trained = load_module(run, options.weights)
    network, example = find_network(trained.module), find_example(trained)
    name = file_name(options.format, FLOAT32)
    with (
        missing_folders(folder),
        tempfile.TemporaryDirectory(prefix=".unchecked-", dir=folder, ignore_cleanup_errors=True) as staging,
    ):
        partial = Path(staging) / name
        is_fixed = _write(options.format, network, example, partial)
        difference, scale = _largest_difference(options, network, example, partial, is_fixed=is_fixed)
        size = partial.stat().st_size
        partial.replace(folder / name)
    _write_listing(folder, options, trained, name, size, difference)
    batch = f"of a batch of {len(example[0])} only" if is_fixed else "of any batch size"
    print(f"checked on the example input, {batch}: outputs of up to {scale:.3g} differ by {difference:.1e}")
    print(f"wrote  {folder / name}")


def find_network(module: Any) -> nn.Module:
    """Return the network to export: from `exported_network()`, the attribute `network`, or `forward`.

    Raises:
        InputError: the module has none of them.
    """
    exported = getattr(module, "exported_network", None)  # the network alone may lack a last step
    network = exported() if callable(exported) else getattr(module, "network", None)
    if isinstance(network, nn.Module):
        found: nn.Module = network
    elif is_overridden("forward", module):
        found = _Forward(module)
    else:
        task = type(module).__name__
        raise InputError(f"run: {task} has no forward and no attribute network; add one to export the run")
    return found.float().requires_grad_(False).eval()


def find_example(trained: TrainedModule) -> Inputs:
    """Return the example input of a module, with at least two entries in each batch.

    Raises:
        InputError: the module has none, or it is neither a tensor nor a tuple of tensors.
    """
    module, shape = trained.module, trained.config["data"].get("input_shape")
    example = getattr(module, "example_input_array", None)
    if example is None:
        example = getattr(module, "example_input", None)
    if (
        example is None
        and isinstance(shape, list)
        and isinstance(getattr(module, "network", None), nn.Module)
    ):
        example = torch.zeros(2, *shape)
    inputs = tuple(example) if isinstance(example, tuple | list) else (example,)
    if example is None or not all(isinstance(one, Tensor) for one in inputs):
        task = type(module).__name__
        problem = "has no example input" if example is None else "has an example input of another kind"
        raise InputError(
            f"run: {task} {problem} (expected a tensor or a tuple of tensors); set "
            "self.example_input_array in its __init__"
        )
    return tuple(torch.cat([one, one]) if one.ndim and len(one) == 1 else one for one in inputs)


class _Forward(nn.Module):
    """The forward pass of a LightningModule, without its trainer."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Any:
        return self.module(*inputs)


def _write(format: str, network: nn.Module, example: Inputs, file: Path) -> bool:
    """Write a file for any batch size, else for that of the example; return true for the latter."""
    problem: Exception | None = None
    for is_fixed in (False, True):
        shapes = None if is_fixed else (tuple({0: Dim("batch")} if one.ndim else None for one in example),)
        try:
            with quiet(), torch.no_grad():
                program = torch.export.export(network, example, dynamic_shapes=_of(network, shapes))
                if format == "onnx":
                    graph: Any = torch.onnx.export(program, dynamo=True, verbose=False)
                    graph.save(str(file))
                else:
                    torch.export.save(program, file)
            return is_fixed
        except Exception as error:  # tracing runs the network, which may raise anything
            problem = problem or error
    assert problem is not None
    raise ExportError(f"torch.export cannot trace this network: {describe_error(problem)}") from problem


def _of(network: nn.Module, shapes: Any) -> Any:
    """Return dynamic shapes in the form for `torch.export`: nested only if a wrapper takes `*inputs`."""
    return shapes if shapes is None or isinstance(network, _Forward) else shapes[0]


def _read(format: str, file: Path) -> Callable[..., Any]:
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]

        def run(*inputs: Tensor) -> Any:
            values = {name: one.numpy() for name, one in zip(names, inputs, strict=True)}
            return [torch.from_numpy(found) for found in session.run(None, values)]

        return run
    loaded: Callable[..., Any] = torch.export.load(file).module()
    return loaded


def _largest_difference(
    options: Options, network: nn.Module, example: Inputs, file: Path, *, is_fixed: bool
) -> tuple[float, float]:
    """Return the largest difference of outputs between network and file, and the largest output.

    Raises:
        ExportError: the difference exceeds the tolerance.
    """
    generator = torch.Generator().manual_seed(0)
    noise = [
        torch.randn(one.shape, generator=generator) if one.is_floating_point() else one for one in example
    ]
    batches = [example, tuple(noise)]
    if not is_fixed:
        batches.append(tuple(torch.cat([one, one, one]) if one.ndim else one for one in noise))
    largest = scale = 0.0
    with quiet(), torch.no_grad():
        predict = _read(options.format, file)
        for inputs in batches:
            expected, found = _tensors(network(*inputs)), _tensors(predict(*inputs))
            for one, other in zip(expected, found, strict=True):
                scale = max(scale, float(one.abs().max()))
                largest = max(largest, float((one.double() - other.double()).abs().max()))
    if not largest <= options.tolerance * max(scale, 1.0):
        raise ExportError(
            f"tolerance={options.tolerance:g}: outputs of up to {scale:.3g} differ by {largest:.1e}; no file "
            "is kept"
        )
    return largest, scale


def _tensors(outputs: Any) -> list[Tensor]:
    found: list[Tensor] = []
    apply_to_collection(outputs, Tensor, found.append)
    return found


def _write_listing(
    folder: Path, options: Options, trained: TrainedModule, name: str, size: int, difference: float
) -> None:
    variant: Mapping[str, Any] = {
        "name": FLOAT32,
        "file": name,
        "bytes": size,
        "accuracy": None,
        "largest_difference": difference,
        "ms": {},
    }
    facts = {
        "format": options.format,
        "run": str(trained.run.path),
        "checkpoint": trained.checkpoint.name,
        "torch": torch.__version__,
        "suffix": FORMATS[options.format].suffix,
        "variants": [variant],
    }
    replace_text(folder / f"{options.format}.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
