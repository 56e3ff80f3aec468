"""What formats share: what a file says of itself, and how its network is called."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

Predictor = Callable[[Tensor], Tensor]
"""Maps images (B, C, H, W) uint8 to what the file's network puts out, (B, K) float32."""

SUFFIXES: Mapping[str, str] = {"torch_export": ".pt2", "onnx": ".onnx"}
INPUT, OUTPUT_AXIS = "images", "batch"


class ExportError(RuntimeError):
    """A network could not be exported, or the file does not do what the network does. Says why in a line."""

    exit_code = 1


@dataclass(frozen=True)
class Description:
    """What a file says of itself, for those who have nothing else.

    Args:
        class_names: of the outputs, in their order.
        input_shape: (C, H, W) of an image.
        output: `logits` or `probabilities`, the name of what comes out.
        mean: of each channel on the scale [0, 1]; images are normalized inside.
        std: likewise.
        test_views: changed copies of an image that are averaged inside.
        variant: how the network was made smaller; `float32` if it was not.
        run: folder of the run, as it was named.
        checkpoint: name of the file that the weights are from.
    """

    class_names: list[str]
    input_shape: tuple[int, int, int]
    output: str
    mean: list[float]
    std: list[float]
    test_views: str
    variant: str
    run: str
    checkpoint: str

    def entries(self) -> dict[str, str]:
        """Each fact as a text: lists and numbers as JSON."""
        facts: dict[str, Any] = {"input": "uint8 images (batch, channels, height, width), 0 to 255"}
        facts |= asdict(self) | {"torch": torch.__version__}
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}


def blank(shape: tuple[int, int, int], batch: int = 2) -> Tensor:
    """Images (batch, C, H, W) to trace a network with; of no data set, as formats may keep them."""
    return torch.zeros(batch, *shape, dtype=torch.uint8)
