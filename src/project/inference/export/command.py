"""Work of `scripts/export.py`: write, check and time the files of a run."""

import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import torch

from project.errors import InputError
from project.inference.export import onnx_graph, torch_program
from project.inference.export.benchmark import (
    Agreement,
    Reference,
    original_outputs,
    predict_all,
    read_test_images,
    read_training_images,
    time_calls,
)
from project.inference.export.options import FLOAT32, PRUNED, STATIC, Options, choose_variants, find_places
from project.inference.export.pruning import prune
from project.inference.export.publish import Row, file_name, publish, refuse_foreign, render
from project.inference.export.torch_program import blank_images, describe_error
from project.inference.export.wrapper import Description, ExportError, ExportWrapper, Predictor
from project.inference.load_run import TrainedRun, load_run
from project.runtime.write_probe import missing_folders

BACKENDS: dict[str, ModuleType] = {"torch_export": torch_program, "onnx": onnx_graph}
"""Modules with the functions `write`, `read`, `quantize`, `read_int8` and `lower`, by format."""


def export(options: Options) -> int:
    """Write, check and time the files of a run; return the exit code, 1 if a variant failed."""
    run, folder = find_places(options)
    variants = choose_variants(options.variants)
    refuse_foreign(folder, options.format, variants)
    trained = load_run(run, options.weights, [*options.data, *options.paths])
    with (
        missing_folders(folder),
        tempfile.TemporaryDirectory(prefix=".unchecked-", dir=folder, ignore_cleanup_errors=True) as staging,
    ):
        return _Export(options, trained, folder, Path(staging)).run(variants)


class _Export:
    def __init__(self, options: Options, trained: TrainedRun, folder: Path, staging: Path) -> None:
        self.options, self.trained, self.folder, self.staging = options, trained, folder, staging
        module, output_type = trained.module, options.output_type
        tta = trained.choose_tta(options.tta)
        self.model = ExportWrapper(
            module.network,
            trained.mean,
            trained.std,
            tta=tta,
            output_type=output_type,
            memory_format=module.memory_format,
        )
        images = read_test_images(trained.datamodule, None if options.check == "test" else options.check)
        outputs = original_outputs(module, images, tta=tta, output_type=output_type)
        self.reference = Reference(images, outputs)
        self.read_calibration = partial(
            read_training_images, trained.datamodule, options.num_calibration_images
        )
        self.description = Description(
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
        self.rows: list[Row] = []
        self.calls: dict[str, dict[int, Predictor]] = {}  # by name and batch size

    def run(self, variants: list[str]) -> int:
        """Make all files and show them; checked files are kept even if a later step fails."""
        agreement = Agreement(self.reference.accuracy_of(self.reference.outputs), 0.0, 1.0)
        self._add("original", None, agreement, self.model)
        self._export_float32()
        self._publish()
        failed = [variant for variant in variants if not self._export_variant(variant)]
        self._benchmark()
        self._publish()
        print(f"\n{render(self.rows, self.batch_sizes)}\n")
        for file in dict.fromkeys(row.file for row in self.rows if row.file):
            print(f"wrote  {file}")
        return 1 if failed else 0

    def _add(self, name: str, file: Path | None, agreement: Agreement, predict: Predictor) -> None:
        self.rows.append(Row(name, file, file.stat().st_size if file else 0, agreement))
        self.calls[name] = dict.fromkeys(self.batch_sizes, predict)

    def _file(self, variant: str) -> Path:
        return self.staging / file_name(self.options.format, variant)

    def _write_float32(self, model: ExportWrapper, file: Path, variant: str) -> Predictor:
        self.backend.write(model, file, replace(self.description, variant=variant))
        predict: Predictor = self.backend.read(file, self.options.num_threads)
        return predict

    def _export_float32(self) -> None:
        file = self._file(FLOAT32)
        try:
            predict = self._write_float32(self.model, file, FLOAT32)
            agreement = self.reference.require_equal(predict, self.options.tolerance)
        except (ExportError, OSError):
            raise
        except Exception as error:  # from the checks and runtimes of the formats
            raise ExportError(f"the network's file cannot be used: {describe_error(error)}") from error
        self._add(FLOAT32, file, agreement, predict)
        print(
            f"checked on {len(self.reference.images):,} test images: {self.options.output_type} of up to "
            f"{agreement.scale:.3g} differ by {agreement.difference:.1e}",
            flush=True,
        )

    def _export_variant(self, variant: str) -> bool:
        """Make and keep a smaller variant; print an error if that fails."""
        num_rows = len(self.rows)
        try:
            if variant == PRUNED:
                self._export_pruned()
            else:
                self._export_int8(variant)
        except Exception as error:  # quantizers, solvers and checks raise many classes
            message = error if isinstance(error, ExportError | InputError) else describe_error(error)
            print(f"error: {variant}: {message}", file=sys.stderr)
            del self.rows[num_rows:]
            self._file(variant).unlink(missing_ok=True)
            return False
        self._publish()
        return True

    def _export_int8(self, variant: str) -> None:
        source = next(row.file for row in self.rows if row.name == FLOAT32)
        assert source is not None
        file = self._file(variant)
        description = replace(self.description, variant=variant)
        images = self.read_calibration() if variant == STATIC else None
        self.backend.quantize(self.model, source, file, description, images)
        predict = self.backend.read_int8(file, self.options.num_threads)
        self._add(variant, file, self.reference.compare(predict), predict)
        name = f"{variant}, lowered"
        try:
            lowered = {
                size: self.backend.lower(file, self.trained.input_shape, size) for size in self.batch_sizes
            }
            calls = {size: predict for size, predict in lowered.items() if predict is not None}
            if calls:
                largest = calls[self.batch_sizes[-1]]
                self._add(name, file, self.reference.compare(largest), largest)
                self.calls[name] = calls
        except Exception as error:  # the file itself is intact
            message = error if isinstance(error, ExportError) else describe_error(error)
            print(f"{name}: {message}", file=sys.stderr)

    def _export_pruned(self) -> None:
        pixels = torch.cat(list(self.read_calibration().normalized()))
        network = prune(self.model.network, pixels, self.options.prune_fraction)
        model = self.model.with_network(network)
        file = self._file(PRUNED)
        predict = self._write_float32(model, file, PRUNED)
        images = self.reference.images
        Reference(images, predict_all(model, images)).require_equal(predict, self.options.tolerance)
        self._add(PRUNED, file, self.reference.compare(predict), predict)

    def _benchmark(self) -> None:
        torch.set_num_threads(self.options.num_threads)
        first = next(self.reference.images.pixels())
        for size in self.batch_sizes:
            repeated = [first] * -(-size // len(first))
            images = torch.cat([*repeated, blank_images(self.trained.input_shape, 0)])[:size].clone()
            predictors = {row.name: self.calls[row.name][size] for row in self.rows}
            timings = time_calls(predictors, images, self.options.benchmark_s)
            for row in self.rows:
                row.timings[size] = timings[row.name]

    def _publish(self) -> None:
        facts = {
            "format": self.options.format,
            "run": str(self.trained.run.path),
            "test_images": len(self.reference.images),
            "threads": self.options.num_threads,
            **self.description.entries(),
        }
        for file in publish(self.folder, self.options.format, self.rows, facts):
            print(f"removed {file}, of an earlier export")
