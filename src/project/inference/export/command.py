"""Implementation of `scripts/export.py`: write, check and time exported files."""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from project.errors import InputError
from project.inference.export import onnx_graph, torch_program
from project.inference.export.benchmark import (
    Agreement,
    ImageSample,
    Reference,
    Timing,
    original_outputs,
    predict_all,
    time_calls,
)
from project.inference.export.channel_pruning import prune
from project.inference.export.options import (
    FLOAT32,
    FORMATS,
    PRUNED,
    STATIC,
    VARIANTS,
    Options,
    choose_variants,
    find_run_and_folder,
)
from project.inference.export.torch_program import blank_images, describe_error
from project.inference.export.wrapper import ExportError, ExportMetadata, ExportWrapper, PredictFunction
from project.inference.load_run import TrainedRun, load_run
from project.modules.tta import static_tta
from project.runtime.atomic_files import replace_text
from project.runtime.console import Column, table
from project.runtime.output_files import missing_folders

BACKENDS: dict[str, ModuleType] = {"torch_export": torch_program, "onnx": onnx_graph}
"""Modules with the functions `write`, `read`, `quantize` and `read_int8`, by format."""


def export(options: Options) -> int:
    """Export a run; return the exit code, 1 if a variant failed."""
    run, folder = find_run_and_folder(options)
    variants = choose_variants(options.variants)
    refuse_foreign(folder, options.format, variants)
    trained = load_run(run, options.weights, options.data_overrides)
    with (
        missing_folders(folder),
        tempfile.TemporaryDirectory(prefix=".unchecked-", dir=folder, ignore_cleanup_errors=True) as staging,
    ):
        return _Exporter(options, trained, folder, Path(staging)).run(variants)


@dataclass
class ExportedVariant:
    """An exported variant of the network, or the original."""

    name: str
    file: Path | None
    size: int
    agreement: Agreement
    predict: PredictFunction
    timings: dict[int, Timing] = field(default_factory=dict)


class _Exporter:
    def __init__(self, options: Options, trained: TrainedRun, folder: Path, staging: Path) -> None:
        self.options, self.trained, self.folder, self.staging = options, trained, folder, staging
        module, output_type = trained.module, options.output_type
        tta = static_tta(trained.choose_tta(options.tta))
        self.model = ExportWrapper(
            module.network,
            trained.mean,
            trained.std,
            tta=tta,
            output_type=output_type,
            memory_format=module.memory_format,
        )
        limit = None if options.check == "test" else options.check
        images = ImageSample(trained.datamodule, "test", limit)
        outputs = original_outputs(module, images, tta=tta, output_type=output_type)
        self.reference = Reference(images, outputs)
        self.metadata = ExportMetadata(
            class_names=trained.class_names,
            input_shape=trained.input_shape,
            output=output_type,
            mean=trained.mean,
            std=trained.std,
            tta=tta,
            variant=FLOAT32,
            run=trained.run.path.name,
            checkpoint=trained.checkpoint.name,
        )
        self.backend = BACKENDS[options.format]
        self.batch_sizes = sorted({1, options.batch_size})
        self.rows: list[ExportedVariant] = []

    def run(self, variants: list[str]) -> int:
        """Export all variants and print a table; checked files are kept even if a later step fails."""
        agreement = Agreement(self.reference.accuracy_of(self.reference.outputs), 0.0, 1.0)
        self._add("original", None, agreement, self.model)
        self._export_float32()
        self._publish()
        failed = [variant for variant in variants if not self._export_variant(variant)]
        self._benchmark()
        self._publish()
        print(f"\n{render(self.rows, self.batch_sizes)}\n")
        for row in self.rows:
            if row.file:
                print(f"wrote  {row.file}")
        return 1 if failed else 0

    def _add(self, name: str, file: Path | None, agreement: Agreement, predict: PredictFunction) -> None:
        self.rows.append(ExportedVariant(name, file, file.stat().st_size if file else 0, agreement, predict))

    def _file(self, variant: str) -> Path:
        return self.staging / file_name(self.options.format, variant)

    def _write_float32(self, model: ExportWrapper, file: Path, variant: str) -> PredictFunction:
        self.backend.write(model, file, replace(self.metadata, variant=variant))
        predict: PredictFunction = self.backend.read(file, self.options.num_threads)
        return predict

    def _export_float32(self) -> None:
        file = self._file(FLOAT32)
        try:
            predict = self._write_float32(self.model, file, FLOAT32)
            agreement = self.reference.require_equal(predict, self.options.tolerance)
        except (ExportError, OSError):
            raise
        except Exception as error:  # raised by the checks and runtimes of the formats
            raise ExportError(f"the network's file cannot be used: {describe_error(error)}") from error
        self._add(FLOAT32, file, agreement, predict)
        print(
            f"checked on {len(self.reference.images):,} test images: {self.options.output_type} of up to "
            f"{agreement.scale:.3g} differ by {agreement.difference:.1e}",
            flush=True,
        )

    def _export_variant(self, variant: str) -> bool:
        """Export and keep a smaller variant; print an error on failure."""
        file = self._file(variant)
        try:
            predict = self._export_pruned(file) if variant == PRUNED else self._export_int8(variant, file)
            self._add(variant, file, self.reference.compare(predict), predict)
        except Exception as error:  # quantizers, solvers and checks raise many classes
            message = error if isinstance(error, ExportError | InputError) else describe_error(error)
            print(f"error: {variant}: {message}", file=sys.stderr)
            file.unlink(missing_ok=True)
            return False
        self._publish()
        return True

    def _calibration_images(self) -> ImageSample:
        return ImageSample(self.trained.datamodule, "train", self.options.num_calibration_images)

    def _export_int8(self, variant: str, file: Path) -> PredictFunction:
        source = next(row.file for row in self.rows if row.name == FLOAT32)
        metadata = replace(self.metadata, variant=variant)
        images = self._calibration_images() if variant == STATIC else None
        self.backend.quantize(self.model, source, file, metadata, images)
        predict: PredictFunction = self.backend.read_int8(file, self.options.num_threads)
        return predict

    def _export_pruned(self, file: Path) -> PredictFunction:
        pixels = torch.cat(list(self._calibration_images().normalized()))
        model = self.model.with_network(prune(self.model.network, pixels, self.options.prune_fraction))
        predict = self._write_float32(model, file, PRUNED)
        images = self.reference.images
        Reference(images, predict_all(model, images)).require_equal(predict, self.options.tolerance)
        return predict

    def _benchmark(self) -> None:
        torch.set_num_threads(self.options.num_threads)
        first = next(self.reference.images.pixels())
        for size in self.batch_sizes:
            repeated = [first] * -(-size // len(first))
            images = torch.cat([*repeated, blank_images(self.trained.input_shape, 0)])[:size].clone()
            predictors = {row.name: row.predict for row in self.rows}
            timings = time_calls(predictors, images, self.options.benchmark_s)
            for row in self.rows:
                row.timings[size] = timings[row.name]

    def _publish(self) -> None:
        facts = {
            "format": self.options.format,
            "run": str(self.trained.run.path),
            "test_images": len(self.reference.images),
            "threads": self.options.num_threads,
            **self.metadata.entries(),
        }
        for file in publish(self.folder, self.options.format, self.rows, facts):
            print(f"removed {file}, of an earlier export")


def file_name(format: str, variant: str) -> str:
    """Return the name of a variant's file."""
    return f"{'model' if variant == FLOAT32 else f'model_{variant}'}{FORMATS[format].suffix}"


def publish(folder: Path, format: str, rows: Sequence[ExportedVariant], facts: dict[str, Any]) -> list[Path]:
    """Move checked files into the output folder and list them in `FORMAT.json`.

    Files of an earlier export in this format that are not replaced are removed: they are variants of other
    weights.
    """
    listing = folder / f"{format}.json"
    names = {row.file.name for row in rows if row.file}
    removed = [folder / name for name in _listed_files(listing, format) if name not in names]
    for file in removed:
        file.unlink(missing_ok=True)
    for row in rows:
        if row.file and row.file.parent != folder:
            row.file = row.file.replace(folder / row.file.name)
    variants = [
        {
            "name": row.name,
            "file": row.file.name if row.file else None,
            "bytes": row.size,
            "accuracy": row.agreement.accuracy,
            "largest_difference": row.agreement.difference,
            "ms": {str(batch): timing._asdict() for batch, timing in row.timings.items()},
        }
        for row in rows
    ]
    replace_text(listing, json.dumps({**facts, "variants": variants}, indent=2, ensure_ascii=False) + "\n")
    return removed


def refuse_foreign(folder: Path, format: str, variants: Sequence[str]) -> None:
    """Refuse to replace files that are not part of an earlier export."""
    listing = folder / f"{format}.json"
    wanted = [file_name(format, variant) for variant in (FLOAT32, *variants)]
    earlier = _listed_files(listing, format)
    for name in [*wanted, *([] if earlier else [listing.name])]:
        if os.path.lexists(folder / name) and name not in earlier:
            raise InputError(
                f"output={folder}: contains a {name} that was not written by an export; give another folder"
            )


def _listed_files(listing: Path, format: str) -> list[str]:
    """Return the names of an earlier export's files; unknown names are ignored."""
    try:
        entries = json.loads(listing.read_bytes())["variants"]
        found = {entry["file"] for entry in entries if entry["file"]}
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return []
    return [name for variant in (FLOAT32, *VARIANTS) if (name := file_name(format, variant)) in found]


def render(rows: Sequence[ExportedVariant], batch_sizes: Sequence[int]) -> str:
    """Format the variants as a table that compares them with the first row, the original."""
    original = rows[0]
    cells = []
    for row in rows:
        accuracy, lost = row.agreement.accuracy, row.agreement.accuracy - original.agreement.accuracy
        cell = [row.name, f"{row.size / 1e6:.3g}" if row.size else "–"]
        cell += [f"{accuracy:.4f}", "" if row is original else f"{lost:+.4f}"]
        for batch_size in batch_sizes:
            time, reference = row.timings[batch_size], original.timings[batch_size]
            speedup = f"{reference.median / time.median:.1f}×"
            cell.append(f"{_short(time.median)} ±{_short(time.spread)} {speedup:>5}")
        cells.append(cell)
    times = [Column(f"batch {batch_size}, ms", right=True, fixed=True) for batch_size in batch_sizes]
    return table([Column("", right=False), "MB", "accuracy", "delta", *times], cells, width=80)


def _short(number: float) -> str:
    return f"{number:.{2 if number < 1 else 1 if number < 100 else 0}f}"
