"""`scripts/export.py`: a run's folder in, files and a table out."""

import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

from project.errors import InputError
from project.inference.export import calibration_data
from project.inference.export.benchmark import Agreement, Reference, original_outputs, predict_all, time_calls
from project.inference.export.formats import Description, ExportError, Predictor, blank
from project.inference.export.options import FLOAT32, PRUNED, Options, chosen, find_places
from project.inference.export.pruning import prune
from project.inference.export.publish import file_name, keep, refuse_foreign
from project.inference.export.report import Row, table
from project.inference.export.torch_program import shorten
from project.inference.export.variants import Writer
from project.inference.export.wrapper import Deployed
from project.inference.load_run import Trained, load
from project.runtime.write_probe import missing_folders


def export(options: Options) -> int:
    """Write, check and measure the files of a run.

    Returns:
        The process's exit code: 1 if a variant could not be made.

    Raises:
        InputError: the options are wrong.
        ExportError: the network cannot be exported, or its file does not do what it does.
    """
    run, folder = find_places(options)
    refuse_foreign(folder, options.format, chosen(options.variants))
    trained = load(run, options.weights, [*options.data, *options.paths])
    with (
        missing_folders(folder),
        tempfile.TemporaryDirectory(prefix=".unchecked-", dir=folder, ignore_cleanup_errors=True) as staging,
    ):
        return _Export(options, trained, folder, Path(staging)).make(chosen(options.variants))


class _Export:
    """One export under way."""

    def __init__(self, options: Options, trained: Trained, folder: Path, staging: Path) -> None:
        self.options, self.trained, self.folder, self.staging = options, trained, folder, staging
        module = trained.module
        views = module.test_views if options.views is None else options.views
        self.model = Deployed(
            module.network,
            trained.mean,
            trained.std,
            views=views,
            output=options.gives,
            memory_format=module.memory_format,
        )
        most = None if options.check == "test" else options.check
        tested = calibration_data.of_test(trained.datamodule, most)
        outputs = original_outputs(module, tested, views=views, output=options.gives)
        self.reference = Reference(tested, outputs)
        self.calibration = partial(calibration_data.of_training, trained.datamodule, options.calibration)
        self.writer = Writer(
            options.format,
            Description(
                class_names=trained.class_names,
                input_shape=trained.input_shape,
                output=options.gives,
                mean=trained.mean,
                std=trained.std,
                test_views=views,
                variant=FLOAT32,
                run=trained.run.path.name,
                checkpoint=trained.checkpoint.name,
            ),
            self.calibration,
            options.threads,
        )
        self.batches = sorted({1, options.batch})
        self.rows: list[Row] = []
        self.calls: dict[int, dict[str, Predictor]] = {batch: {} for batch in self.batches}

    def make(self, variants: list[str]) -> int:
        """Make all files and show them. What is checked is kept, whatever becomes of the rest."""
        original = self.reference.outputs
        self._add("original", None, Agreement(self.reference.accuracy_of(original), 0.0, 1.0), self._eager)
        self._whole()
        self._keep()
        failed = [variant for variant in variants if not self._attempt(variant)]
        self._time()
        self._keep()
        print("\n".join(["", *table(self.rows, self.batches), ""]))
        for file in dict.fromkeys(row.file for row in self.rows if row.file):
            print(f"wrote  {file}")
        return 1 if failed else 0

    def _eager(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.model(images)

    def _add(self, name: str, file: Path | None, agreement: Agreement, predict: Predictor) -> None:
        self.rows.append(Row(name, file, file.stat().st_size if file else 0, agreement, {}))
        for batch in self.batches:
            self.calls[batch][name] = predict

    def _file(self, variant: str) -> Path:
        return self.staging / file_name(self.options.format, variant)

    def _whole(self) -> None:
        """The network as it is."""
        file = self._file(FLOAT32)
        try:
            predict = self.writer.float32(self.model, file)
            agreement = self.reference.require_equal(predict, self.options.tolerance)
        except (ExportError, OSError):
            raise
        except Exception as error:  # of the formats' checks and of their ways to run a file
            raise ExportError(f"the network's file cannot be used: {shorten(error)}") from error
        self._add(FLOAT32, file, agreement, predict)
        print(
            f"checked on {len(self.reference.samples):,} test images: {self.options.gives} of up to "
            f"{agreement.scale:.3g} differ by {agreement.difference:.1e}",
            flush=True,
        )

    def _attempt(self, variant: str) -> bool:
        """Make a smaller one, and keep it; say so if it cannot be done."""
        whole = len(self.rows)
        try:
            (self._pruned if variant == PRUNED else partial(self._int8, variant))()
        except Exception as error:  # quantizers, solvers and checks raise many kinds
            told = error if isinstance(error, ExportError | InputError) else shorten(error)
            print(f"error: {variant}: {told}", file=sys.stderr)
            for row in self.rows[whole:]:
                for calls in self.calls.values():
                    calls.pop(row.name, None)
            del self.rows[whole:]
            self._file(variant).unlink(missing_ok=True)
            return False
        self._keep()
        return True

    def _int8(self, variant: str) -> None:
        source = next(row.file for row in self.rows if row.name == FLOAT32)
        assert source is not None
        file = self._file(variant)
        predict = self.writer.int8(self.model, source, file, variant)
        self._add(variant, file, self.reference.compare(predict), predict)
        try:
            lowered = {batch: self.writer.lowered(file, batch) for batch in self.batches}
            largest = lowered[self.batches[-1]]
            agreement = None if largest is None else self.reference.compare(largest)
        except Exception as error:  # the file is whole nevertheless
            told = error if isinstance(error, ExportError) else shorten(error)
            print(f"{variant}, lowered: {told}", file=sys.stderr)
            return
        if largest is not None and agreement is not None:
            name = f"{variant}, lowered"
            self._add(name, file, agreement, largest)
            for batch, predict_lowered in lowered.items():
                assert predict_lowered is not None
                self.calls[batch][name] = predict_lowered

    def _pruned(self) -> None:
        pixels = torch.cat(list(self.calibration().normalized()))
        network = prune(self.model.network, pixels, self.options.prune)
        model = self.model.with_network(network)
        file = self._file(PRUNED)
        predict = self.writer.float32(model, file, PRUNED)
        tested = self.reference.samples
        with torch.no_grad():
            expected = Reference(tested, predict_all(model, tested))
        expected.require_equal(predict, self.options.tolerance)
        self._add(PRUNED, file, self.reference.compare(predict), predict)

    def _time(self) -> None:
        torch.set_num_threads(self.options.threads)
        first = next(self.reference.samples.pixels())
        for batch in self.batches:
            repeated = [first] * -(-batch // len(first))
            images = torch.cat([*repeated, blank(self.trained.input_shape, 0)])[:batch].clone()
            timings = time_calls(self.calls[batch], images, self.options.seconds)
            for row in self.rows:
                row.timings[batch] = timings[row.name]

    def _keep(self) -> None:
        """Put what is checked where it belongs."""
        facts = {
            "format": self.options.format,
            "run": str(self.trained.run.path),
            "test_images": len(self.reference.samples),
            "threads": self.options.threads,
            **self.writer.description.entries(),
        }
        for file in keep(self.folder, self.options.format, self.rows, facts):
            print(f"removed {file}, of an earlier export")
