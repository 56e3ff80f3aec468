"""`scripts/export.py`: a run's folder in, files and a table out."""

import json
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

from project.errors import InputError
from project.export import samples
from project.export.deployed import Deployed
from project.export.formats import SUFFIXES, Description, ExportError, Predictor, blank
from project.export.measure import Agreement, Reference, original_outputs, predict_all, time_calls
from project.export.options import FLOAT32, PRUNED, Options, chosen, refuse_wrong
from project.export.pruning import prune
from project.export.report import Row, record, table
from project.export.variants import Writer
from project.rebuild import Trained, load
from project.runs.finding import find_trained
from project.runs.outages import reason_of, replace_text

FOLDER = "export"


def export(options: Options) -> int:
    """Write, check and measure the files of a run.

    Returns:
        The process's exit code: 1 if a variant could not be made.

    Raises:
        InputError: the options are wrong.
        ExportError: the network cannot be exported, or its file does not do what it does.
    """
    refuse_wrong(options)
    run = find_trained(options.run, options.outputs)
    trained = load(run, options.weights, [*options.data, *options.paths])
    folder = options.output or run.path / FOLDER
    staging = _staging(folder)
    try:
        return _Export(options, trained, folder, staging).make(chosen(options.variants))
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _staging(folder: Path) -> Path:
    """A folder for what is not checked yet, beside where it is to be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".unchecked-", dir=folder))
    except OSError as error:
        raise InputError(f"output={folder}: cannot write there ({reason_of(error)})") from error


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
        tested = samples.of_test(trained.datamodule, most)
        outputs = original_outputs(module, tested, views=views, output=options.gives)
        self.reference = Reference(tested, outputs)
        self.calibration = partial(samples.of_training, trained.datamodule, options.calibration)
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
        """Make all files and show them."""
        original = self.reference.outputs
        self._add("original", None, Agreement(self.reference.accuracy_of(original), 0.0, 1.0), self._eager)
        self._whole()
        failed = [variant for variant in variants if not self._attempt(variant)]
        self._time()
        print("\n".join(["", *table(self.rows, self.batches), ""]))
        self._keep()
        return 1 if failed else 0

    def _eager(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.model(images)

    def _add(self, name: str, file: Path | None, agreement: Agreement, predict: Predictor) -> None:
        self.rows.append(Row(name, file, file.stat().st_size if file else 0, agreement, {}))
        for batch in self.batches:
            self.calls[batch][name] = predict

    def _file(self, variant: str) -> Path:
        name = "model" if variant == FLOAT32 else f"model_{variant}"
        return self.staging / f"{name}{SUFFIXES[self.options.format]}"

    def _whole(self) -> None:
        """The network as it is."""
        file = self._file(FLOAT32)
        predict = self.writer.float32(self.model, file)
        agreement = self.reference.require_equal(predict, self.options.tolerance)
        self._add(FLOAT32, file, agreement, predict)
        print(
            f"checked on {len(self.reference.samples):,} test images: {self.options.gives} of up to "
            f"{agreement.scale:.3g} differ by {agreement.difference:.1e}",
            flush=True,
        )

    def _attempt(self, variant: str) -> bool:
        """Make a smaller one; say so if it cannot be done."""
        try:
            (self._pruned if variant == PRUNED else partial(self._int8, variant))()
        except ExportError as error:
            print(f"error: {variant}: {error}", file=sys.stderr)
            self._file(variant).unlink(missing_ok=True)
            return False
        return True

    def _int8(self, variant: str) -> None:
        file = self._file(variant)
        predict = self.writer.int8(self.model, self._file(FLOAT32), file, variant)
        self._add(variant, file, self.reference.compare(predict), predict)
        try:
            lowered = {batch: self.writer.lowered(file, batch) for batch in self.batches}
        except ExportError as error:  # the file is whole nevertheless
            print(f"{variant}: {error}", file=sys.stderr)
            return
        if (largest := lowered[self.batches[-1]]) is not None:
            name = f"{variant}, lowered"
            self._add(name, file, self.reference.compare(largest), largest)
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
        """Put files where they belong, each whole or not at all."""
        kept: dict[Path, Path] = {}
        for file in sorted({row.file for row in self.rows if row.file}):
            kept[file] = file.replace(self.folder / file.name)
        facts = {
            "format": self.options.format,
            "run": str(self.trained.run.path),
            "test_images": len(self.reference.samples),
            "threads": self.options.threads,
            **self.writer.description.entries(),
        }
        text = json.dumps(record(self.rows, facts), indent=2, ensure_ascii=False) + "\n"
        replace_text(self.folder / f"{self.options.format}.json", text)
        for file in kept.values():
            print(f"wrote  {file}")
