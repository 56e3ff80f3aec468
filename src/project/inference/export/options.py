"""Keys of `scripts/export.py`, and what can be wrong with them before torch is imported."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from project.config.choices import Views
from project.config.command_options import Overrides, option
from project.errors import InputError
from project.runs.find import LAST, find_trained
from project.runs.run_folder import RunFolder
from project.runtime.text import did_you_mean
from project.runtime.write_probe import refuse_unwritable_output

NEEDED: Mapping[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "torch_export": (),
}
NEEDED_BY_INT8: Mapping[str, tuple[str, ...]] = {"onnx": (), "torch_export": ("torchao",)}
FLOAT32, DYNAMIC, STATIC, PRUNED = "float32", "dynamic_int8", "static_int8", "pruned"
VARIANTS = (DYNAMIC, STATIC, PRUNED)
FOLDER = "export"
ALL = "all"
AUTO = "auto"


@dataclass
class Options:
    """Write a run's network as a file that needs nothing of this project, and smaller
    ones beside it. Images go in as uint8 (batch, channels, height, width) of the
    network's size; they are normalized inside. A file is kept when it was checked.
    """

    run: str = option(LAST, "a run's folder; a sweep's, for its best run; or last")
    format: Literal["torch_export", "onnx"] = option("torch_export", "of the files")
    variants: list[str] = option([], "smaller ones too: dynamic_int8, static_int8, pruned, or all")
    gives: Literal["logits", "probabilities"] = option("logits", "what comes out of it")
    views: Views | None = option(
        None, "copies of an image whose logits are averaged; null: as the run was tested"
    )
    check: Literal["test"] | int = option("test", "test images to check with: all, or a number", least=1)
    tolerance: float = option(1e-5, "largest difference, in units of the largest output", least=0)
    prune: float = option(0.5, "share of the channels that `pruned` goes without", least=0)
    calibration: int = option(512, "training images for static int8 and pruning", least=1)
    batch: int = option(64, "images of the larger batch that is timed", least=1, most=65_536)
    seconds: float = option(2.0, "of timing, for each file and batch size", least=0)
    threads: int = option(1, "of the CPU, while it is timed", least=1)
    weights: str = option(AUTO, "auto: those tested; best, last, previous, or a file")
    output: Path | None = option(None, "folder to write; null: export/ in the run's folder")
    outputs: Path = option(Path("outputs"), "where last is looked for")
    data: Overrides = option(Overrides(), "another data set, or where it is: data.path=…")
    paths: Overrides = option(Overrides(), "likewise: paths.data=…")


EXAMPLES = """\
examples:
  python scripts/export.py run=last
  python scripts/export.py run=last format=onnx variants=all
  python scripts/export.py run=outputs/sweep/2026-01-31_09-30-00 gives=probabilities
"""


def chosen(wanted: list[str]) -> list[str]:
    """Variants that the command line names, each once, in the order of the table.

    Raises:
        InputError: one is unknown.
    """
    for name in wanted:
        if name not in (*VARIANTS, ALL):
            raise InputError(f"variants={','.join(wanted)}: {did_you_mean(name, (*VARIANTS, ALL))}")
    return [name for name in VARIANTS if name in wanted or ALL in wanted]


def refuse_missing_packages(format: str, variants: list[str]) -> None:
    """Make sure that what a format needs is installed.

    Raises:
        InputError: it is not.
    """
    needed = NEEDED[format] + (NEEDED_BY_INT8[format] if {DYNAMIC, STATIC} & set(variants) else ())
    if missing := [name for name in needed if find_spec(name) is None]:
        int8 = "" if set(missing) <= set(NEEDED[format]) else " in int8"
        raise InputError(
            f"format={format}{int8}: needs {', '.join(missing)}; install with: uv sync --extra export "
            "(or pip install -e '.[export]')"
        )


def refuse_wrong(options: Options) -> None:
    """Make sure that the options can be followed.

    Raises:
        InputError: they cannot.
    """
    variants = chosen(options.variants)
    if not options.prune < 1:
        raise InputError(f"prune={options.prune:g}: must be below 1")
    refuse_missing_packages(options.format, variants)


def find_places(options: Options) -> tuple[RunFolder, Path]:
    """Find the run that is exported and the folder that is written, and make sure that both can be used.

    Raises:
        InputError: the options are wrong, there is no such run, or the folder cannot be written.
    """
    refuse_wrong(options)
    run = find_trained(options.run, options.outputs)
    folder = options.output or run.path / FOLDER
    refuse_unwritable_output(f"output={folder}", folder, folder=True)
    return run, folder
