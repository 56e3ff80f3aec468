"""Explanations of answers: maps of the evidence for a class, as transparent images over the input."""

import asyncio
import base64
import io
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
from PIL import Image
from torch import Tensor

from project.errors import InputError, NonFiniteError, one_line
from project.inference.explain.explainer import Explainer
from project.inference.explain.options import Method
from project.inference.serve.batching import QueueFullError
from project.inference.serve.models import ServedModel

CAPTUM = "captum"
SMALL_SIDE = 64
"""Side up to which occlusion comes first: the last layer of a network of small images, which Grad-CAM scales
up, has few pixels [pixels]."""
MAX_WAITING = 8
COLOR = (240, 138, 75)
"""Color of the evidence; its opacity is the map's value."""
MAX_OPACITY = 230


class ExplanationQueue:
    """Explains one image at a time, in parallel with predictions; keeps the explainer of the newest model.

    Args:
        accelerator: see `inference.options.Accelerator`.
    """

    def __init__(self, accelerator: str) -> None:
        self.accelerator = accelerator
        self.is_available = find_spec(CAPTUM) is not None
        self._explainers: dict[tuple[str, str], tuple[ServedModel, Explainer]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="explain")
        self._num_waiting = 0

    async def explain(self, name: str, model: ServedModel, image: Tensor) -> dict[str, str]:
        """Return the explained class, the method, and the map of an image (C, H, W) uint8 as a data URI.

        If no method fits the network, the dict has the key `problem` instead.

        Raises:
            QueueFullError: others wait already.
        """
        if self._num_waiting >= MAX_WAITING:
            raise QueueFullError(1)
        self._num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, self._compute, name, model, image
            )
        finally:
            self._num_waiting -= 1

    def _compute(self, name: str, model: ServedModel, image: Tensor) -> dict[str, str]:
        try:
            methods: tuple[Method, ...] = ("auto", "occlusion")
            for method in methods if max(image.shape[1:]) > SMALL_SIDE else methods[::-1]:
                explainer = self._explainer(name, model, method)
                found = explainer.maps(image[None])
                if found.maps.any():
                    break
        except (InputError, NonFiniteError) as error:
            return {"problem": one_line(error)}
        label = model.class_names[int(found.targets[0])]
        return {"class": label, "method": explainer.method, "map": _overlay(found.maps[0])}

    def _explainer(self, name: str, model: ServedModel, method: Method) -> Explainer:
        known, explainer = self._explainers.get((name, method), (None, None))
        if explainer is None or known is not model:
            explainer = Explainer(model.trained, method, accelerator=self.accelerator)
            self._explainers[name, method] = (model, explainer)
        return explainer


def _overlay(evidence: Tensor) -> str:
    """Return a map (H, W) in [0, 1] as a PNG file in a data URI, transparent where there is no evidence."""
    pixels = np.empty((*evidence.shape, 4), dtype=np.uint8)
    pixels[..., :3] = COLOR
    pixels[..., 3] = np.rint(evidence.clamp(0, 1).numpy() * MAX_OPACITY)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
