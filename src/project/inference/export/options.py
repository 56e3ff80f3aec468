"""Options of `scripts/export.py`, their checks, and the file formats. Does not import torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

from project.config.command_options import option
from project.errors import InputError
from project.inference.options import DataOptions
from project.inference.run_config import check_request, is_image_classifier, read_config
from project.runs.comparison import find_trained
from project.runs.run_folder import RunFolder
from project.runtime import lazy_imports
from project.runtime.console import LOADING, waiting
from project.runtime.extras import install_command
from project.runtime.output_files import refuse_unwritable_output
from project.runtime.text import did_you_mean

OutputType = Literal["logits", "probabilities"]
FLOAT32, DYNAMIC, STATIC, PRUNED = "float32", "dynamic_int8", "static_int8", "pruned"
VARIANTS = (DYNAMIC, STATIC, PRUNED)
FOLDER = "export"
ALL = "all"
EXAMPLES = """\
examples:
  python scripts/export.py run=last
  python scripts/export.py run=last format=onnx variants=all
  python scripts/export.py run=outputs/sweep/2026-01-31_09-30-00 output_type=probabilities
"""


class Format(NamedTuple):
    """File format and the packages that it needs."""

    suffix: str
    packages: tuple[str, ...] = ()
    int8_packages: tuple[str, ...] = ()


FORMATS = {
    "torch_export": Format(".pt2", int8_packages=("torchao",)),
    "onnx": Format(".onnx", packages=("onnx", "onnxscript", "onnxruntime")),
}


@dataclass(frozen=True, kw_only=True)
class Options(DataOptions):
    """Export a run's network to a file that runs without this package, optionally with
    smaller variants. The input is uint8 images (batch, channels, height, width) of the
    network's size, which are normalized inside. Only files that pass a check are kept.
    """

    format: Literal["torch_export", "onnx"] = option("torch_export", "file format")
    variants: list[str] = option([], "smaller variants: dynamic_int8, static_int8, pruned, or all")
    output_type: OutputType = option("logits", "output of the exported network")
    check: Literal["test"] | int = option(
        "test", "number of test images to compare outputs on; test: all of them", least=1
    )
    tolerance: float = option(1e-5, "largest difference of outputs, relative to the largest output", least=0)
    prune_fraction: float = option(0.5, "fraction of the channels that `pruned` removes", least=0)
    num_calibration_images: int = option(512, "training images for static int8 and pruning", least=1)
    batch_size: int = option(64, "larger of the two batch sizes of the benchmark", least=1, most=65_536)
    benchmark_s: float = option(2.0, "benchmark duration for each file and batch size, seconds", least=0)
    num_threads: int = option(1, "CPU threads of the benchmark", least=1)
    output: Path | None = option(None, "output folder; null: export/ in the run's folder")


def main(options: Options) -> int:
    """Check the options without torch, then export."""
    run, _ = find_run_and_folder(options)
    check_request(run, options.weights, options.data_overrides)
    if not is_image_classifier(read_config(run)):
        with waiting(LOADING):
            from project.inference.export.any_module import export_any  # imports torch

        export_any(options, *find_run_and_folder(options))
        return 0
    with lazy_imports.gc_disabled(), waiting(LOADING):
        from project.inference.export.command import export  # imports torch
    return export(replace(options, run=str(run.path)))


def choose_variants(wanted: Sequence[str]) -> list[str]:
    """Return the requested variants, each once, in the order of `VARIANTS`."""
    for name in wanted:
        if name not in (*VARIANTS, ALL):
            raise InputError(f"variants={','.join(wanted)}: {did_you_mean(name, (*VARIANTS, ALL))}")
    return [name for name in VARIANTS if name in wanted or ALL in wanted]


def check_options(options: Options) -> None:
    """Check option values and installed packages."""
    variants = choose_variants(options.variants)
    if not options.prune_fraction < 1:
        raise InputError(f"prune_fraction={options.prune_fraction:g}: must be below 1")
    kind = FORMATS[options.format]
    needed = kind.packages + (kind.int8_packages if {DYNAMIC, STATIC} & set(variants) else ())
    if missing := [name for name in needed if find_spec(name) is None]:
        int8 = "" if set(missing) <= set(kind.packages) else " in int8"
        raise InputError(
            f"format={options.format}{int8}: needs {', '.join(missing)}; run {install_command('export')}"
        )


def find_run_and_folder(options: Options) -> tuple[RunFolder, Path]:
    """Return the run and the output folder after checking both."""
    check_options(options)
    run = find_trained(options.run, options.outputs)
    folder = options.output or run.path / FOLDER
    refuse_unwritable_output(f"output={folder}", folder, folder=True)
    return run, folder
