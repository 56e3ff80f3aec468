"""Explanations of the predictions of a trained run, for batches of images."""

import copy
from collections.abc import Sequence
from functools import partial
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

from project.callbacks.visuals import penultimate_features
from project.errors import InputError, NonFiniteError
from project.inference.explain.methods import Attribution, Settings, to_maps
from project.inference.explain.options import Method
from project.inference.load_run import TrainedRun
from project.inference.predict.predictions import Predictor


class Explanations(NamedTuple):
    """Explanations of N images, on the CPU.

    Args:
        maps: (N, H, W) float32 in [0, 1]: evidence for the target class, 1 at the pixel with the most.
            All 0 for an image without evidence for its class.
        probabilities: (N, K) float32, as `predict` gives them.
        targets: (N,) the classes that are explained.
        attributions: (N, H, W) float32, the maps before scaling; negative is evidence against the class.
    """

    maps: Tensor
    probabilities: Tensor
    targets: Tensor
    attributions: Tensor

    @property
    def predicted(self) -> Tensor:
        """The most probable classes (N,)."""
        return self.probabilities.argmax(dim=1)


class Explainer:
    """Explains the predictions of a trained run; one thread at a time, others wait.

    Attributions are computed in single precision (a run in double precision keeps it) and without test-time
    augmentation, on a copy of the network.

    Args:
        trained: the run, whose network is moved to the device.
        method: `grad_cam`, `integrated_gradients`, `occlusion`, `attention_rollout`, or `auto`: attention
            rollout for transformers, Grad-CAM for convolutional networks with global pooling, occlusion for
            other convolutional networks, integrated gradients for all others.
        settings: settings of the methods.
        tta: test-time augmentation of the predictions [that of the run's test].
        accelerator: see `inference.options.Accelerator`.
        batch_size: images explained at once.

    Raises:
        InputError: the method does not fit the network, Captum is not installed, or this machine has no such
            accelerator.
    """

    def __init__(
        self,
        trained: TrainedRun,
        method: Method = "auto",
        settings: Settings | None = None,
        *,
        tta: str | None = None,
        accelerator: str = "auto",
        batch_size: int = 32,
    ) -> None:
        self.trained = trained
        self.batch_size = batch_size
        self.predictor = Predictor(trained, tta, accelerator)
        self.network = copy.deepcopy(trained.module.network).eval()
        self.dtype = (
            torch.float64 if trained.config["trainer"].get("precision") == "64-true" else torch.float32
        )
        self.network.to(self.dtype)
        self._lock = Lock()
        black = self.normalize(torch.zeros(1, *trained.input_shape, dtype=torch.uint8))
        self.attribution = Attribution(
            self.network, black, method, settings, black=black[0, :, :1, :1].clone()
        )

    @property
    def method(self) -> str:
        """The chosen method."""
        return self.attribution.method

    def normalize(self, images: Tensor) -> Tensor:
        """Return the network's input for images (B, C, H, W) uint8."""
        shift, scale = self.predictor.shift, self.predictor.scale
        pixels = (images.to(self.predictor.device).float() - shift) * scale
        return pixels.to(self.dtype).contiguous(memory_format=self.trained.module.memory_format)

    def features(self, images: Tensor) -> Tensor:
        """Return the penultimate features (N, D) float32 of images (N, C, H, W) uint8, on the CPU."""
        parts = []
        with self._lock:
            for part in images.split(self.batch_size * 8):
                run = partial(self.network, self.normalize(part))
                parts.append(penultimate_features(self.network, run).cpu())
        return torch.cat(parts)

    def maps(self, images: Tensor, targets: int | Sequence[int] | Tensor | None = None) -> Explanations:
        """Explain images.

        Args:
            images: (N, C, H, W) uint8 of the network's input shape, before normalization.
            targets: the class to explain, one for all images or one for each [the predicted class].

        Raises:
            InputError: the images or targets have another shape.
            NonFiniteError: the outputs or attributions are NaN or infinite.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.trained.input_shape:
            raise InputError(
                f"images: wrong shape (expected (N, {', '.join(map(str, self.trained.input_shape))}), got "
                f"{tuple(images.shape)}); decode them as `predict` does"
            )
        if targets is not None:
            targets = torch.as_tensor(targets, dtype=torch.long).cpu().expand(len(images))
        parts = [torch.zeros(0, *images.shape[2:])]
        probabilities = [torch.zeros(0, len(self.trained.class_names))]
        with self._lock:
            for start in range(0, len(images), self.batch_size):
                batch = images[start : start + self.batch_size]
                probabilities.append(self.predictor.probabilities(batch))
                chosen = probabilities[-1].argmax(dim=1)
                if targets is not None:
                    chosen = targets[start : start + self.batch_size]
                found = self.attribution.attribute(self.normalize(batch), chosen.to(self.predictor.device))
                parts.append(found.cpu())
        attributions, classes = torch.cat(parts), torch.cat(probabilities)
        if not attributions.isfinite().all():
            raise NonFiniteError(
                f"{self.trained.checkpoint}: the attributions are NaN or infinite; give another method, "
                "or try other weights"
            )
        chosen = classes.argmax(dim=1) if targets is None else targets
        return Explanations(to_maps(attributions), classes, chosen, attributions)
