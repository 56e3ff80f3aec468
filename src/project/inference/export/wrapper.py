"""Wrapper of an exported network, and the metadata of its file."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from project.datamodules.loading.loader import normalization
from project.inference.export.options import OutputType
from project.modules.tta import tta_logits

PredictFunction = Callable[[Tensor], Tensor]
"""Function from images (B, C, H, W) uint8 to outputs (B, K) float32."""


class ExportError(RuntimeError):
    """A network cannot be exported, or its file computes different outputs."""

    exit_code = 1


@dataclass(frozen=True)
class ExportMetadata:
    """Metadata of an exported file.

    Args:
        class_names: names of the classes, in the order of the outputs.
        input_shape: shape (C, H, W) of an image.
        output: name and type of the output, `logits` or `probabilities`.
        mean: mean of each channel in [0, 1], for the normalization inside the network.
        std: standard deviation of each channel in [0, 1].
        tta: test-time augmentation inside the network.
        variant: `float32`, or the method by which the network was made smaller.
        run: name of the run's folder.
        checkpoint: name of the checkpoint file.
    """

    class_names: list[str]
    input_shape: tuple[int, int, int]
    output: str
    mean: list[float]
    std: list[float]
    tta: str
    variant: str
    run: str
    checkpoint: str

    def entries(self) -> dict[str, str]:
        """Return the metadata as strings, lists and numbers as JSON."""
        facts: dict[str, Any] = {"input": "uint8 images (batch, channels, height, width), 0 to 255"}
        facts |= asdict(self) | {"torch": torch.__version__}
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}


class ExportWrapper(nn.Module):
    """Network with normalization, test-time augmentation and softmax, in evaluation mode and float32.

    The operations and their order are those of the data loader and the classifier's `test_step`.

    Args:
        network: module that maps normalized images (B, C, H, W) to logits (B, K); a copy is used.
        mean: mean of each channel in [0, 1].
        std: standard deviation of each channel in [0, 1].
        tta: test-time augmentation (see `modules.tta`).
        output_type: type of the output.
        memory_format: memory format of the network's input.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        tta: str = "none",
        output_type: OutputType = "logits",
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).float().requires_grad_(False)
        self.tta = tta
        self.output_type = output_type
        self.memory_format = memory_format
        for name, values in zip(("shift", "scale"), normalization(mean, std), strict=True):
            self.register_buffer(name, values)  # C, 1, 1
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) uint8 to logits or probabilities (B, K) float32."""
        normalized = (images.float() - self.shift) * self.scale
        logits = tta_logits(self._call_network, normalized, self.tta)
        return logits.softmax(dim=1) if self.output_type == "probabilities" else logits

    def with_network(
        self, network: nn.Module, memory_format: torch.memory_format | None = None
    ) -> "ExportWrapper":
        """Return a copy that wraps another network, optionally with another memory format."""
        other = copy.copy(self)
        other.memory_format = memory_format or self.memory_format
        placed = copy.deepcopy(network).float().to(memory_format=other.memory_format)
        other._modules = {"network": placed.requires_grad_(False).eval()}
        return other

    def _call_network(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.contiguous(memory_format=self.memory_format))
        return logits
