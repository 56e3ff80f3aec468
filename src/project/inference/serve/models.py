"""Served models, and their replacement by newer checkpoints."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from project.errors import InputError, NonFiniteError, summarize
from project.inference.export import onnx_graph
from project.inference.load_run import TrainedRun, load_run
from project.inference.predict.predictions import Predictor
from project.inference.run_config import choose_checkpoint
from project.inference.serve.drawing import BOX_FRACTION, BOX_FRACTIONS
from project.inference.serve.options import ModelSource, Options, find_exported
from project.runs.comparison import find_best
from project.runs.run_folder import RunFolder
from project.runs.sweep_folder import find_sweep
from project.runtime.devices import available_cpus

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Attempts to load a checkpoint that training replaces meanwhile."""
Fingerprint = tuple[str, int, int, int]


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A network with everything that an answer needs; never changed, only replaced.

    Args:
        run: the run's folder, as the user types it.
        checkpoint: name of the file of the weights.
        version: start of the file's SHA-256 digest.
        trained: the run.
        probabilities: function from images (B, C, H, W) uint8 to class probabilities (B, K) float32.
    """

    run: str
    checkpoint: str
    version: str
    trained: TrainedRun
    probabilities: Callable[[Tensor], Tensor]

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the probabilities."""
        return self.trained.class_names

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the network's input images."""
        return self.trained.input_shape

    @property
    def box_fraction(self) -> float:
        """Longest side of the ink in an image of handwriting, as a fraction of the image's side."""
        data = self.trained.config["data"]["_target_"].rpartition(".")[2]
        return BOX_FRACTIONS.get(data, BOX_FRACTION)


class ModelSlot:
    """Place of a served model, which a newer one replaces in a single assignment.

    Args:
        source: name, and run or sweep folder.
        options: those of the command.

    Raises:
        InputError: the model cannot be loaded.
    """

    def __init__(self, source: ModelSource, options: Options) -> None:
        self.source = source
        self.options = options
        self.num_reloads = 0
        self.num_failures = 0
        self._problem = ""
        self._loaded, self.model = self._load()

    def refresh(self) -> bool:
        """Replace the model if there is a newer checkpoint; return true if so.

        A checkpoint that cannot be loaded is reported once, and the present model stays.
        """
        try:
            if self._fingerprint(self._run()) == self._loaded:
                return False
            self._loaded, model = self._load()
        except Exception as error:  # of the file system, of torch, of a network that has changed
            self.num_failures += 1
            if (problem := summarize(error)) != self._problem:
                self._problem = problem
                log.warning("%s: keeps %s (%s)", self.source.name, self.model.version, problem)
            return False
        self.model, self._problem = model, ""
        self.num_reloads += 1
        log.warning("%s: now %s, %s (%s)", self.source.name, model.run, model.checkpoint, model.version)
        return True

    def _run(self) -> RunFolder:
        if find_sweep(self.source.folder) is not None:
            return RunFolder(find_best(self.source.folder)[0].folder)
        return RunFolder(self.source.folder)

    def _file(self, run: RunFolder) -> Path:
        if self.options.backend == "onnx":
            return find_exported(run)
        return choose_checkpoint(run, self.options.weights)

    def _fingerprint(self, run: RunFolder) -> Fingerprint:
        """Return what changes when the file of the weights is replaced, without reading the file."""
        file = self._file(run)
        status = file.stat()
        return (str(file), status.st_mtime_ns, status.st_size, status.st_ino)

    def _load(self) -> tuple[Fingerprint, ServedModel]:
        """Load the present weights, and run the network once, so that a broken one is never served."""
        for _ in range(MAX_ATTEMPTS):
            run = self._run()
            before = self._fingerprint(run)
            model = load_model(run, self._file(run), self.options)
            if self._fingerprint(run) == before:
                model.probabilities(torch.zeros(1, *model.input_shape, dtype=torch.uint8))
                return before, model
        raise InputError(f"run={self.source.folder}: its checkpoint changes too often; try again")


def load_model(run: RunFolder, file: Path, options: Options) -> ServedModel:
    """Load a run's network for a backend.

    Args:
        run: the run.
        file: file of the weights: a checkpoint or an exported network.
        options: those of the command.

    Raises:
        InputError: the folder or the file is damaged.
    """
    trained = load_run(run, options.weights)
    if options.backend == "onnx":
        probabilities = _read_onnx(file, trained)
    else:
        probabilities = Predictor(trained, options.tta, options.accelerator).probabilities
    with file.open("rb") as stream:
        version = hashlib.file_digest(stream, "sha256").hexdigest()[:12]
    return ServedModel(run.shown, file.name, version, trained, probabilities)


def _read_onnx(file: Path, trained: TrainedRun) -> Callable[[Tensor], Tensor]:
    """Return the function of an exported file; its normalization and test-time augmentation are inside."""
    import onnxruntime

    facts = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).get_modelmeta()
    outputs_logits = facts.custom_metadata_map.get("output", "logits") == "logits"
    predict = onnx_graph.read(file, available_cpus())

    def probabilities(images: Tensor) -> Tensor:
        outputs = predict(images)
        outputs = outputs.softmax(-1) if outputs_logits else outputs
        if not outputs.isfinite().all():
            raise NonFiniteError(f"{file}: outputs are NaN or infinite; export the run again")
        return outputs

    if probabilities(torch.zeros(1, *trained.input_shape, dtype=torch.uint8)).shape[1] != len(
        trained.class_names
    ):
        raise InputError(f"backend=onnx: {file} is of another network than {trained.run.shown}; export again")
    return probabilities
