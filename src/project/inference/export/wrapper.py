"""The exported network: uint8 images as input, logits or probabilities as output."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from project.inference.export.options import OutputType
from project.modules.tta import mean_over_views


class ExportWrapper(nn.Module):
    """A network with normalization, test-time augmentation and softmax, in evaluation mode and float32.

    Its operations and their order are those of the data loader and of the classifier's `test_step`.

    Args:
        network: a module from normalized images (B, C, H, W) to logits (B, K); it is copied.
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
        self.register_buffer("shift", 255 * torch.tensor(mean).view(-1, 1, 1))  # C, 1, 1
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(-1, 1, 1)))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) uint8 to logits or probabilities (B, K) float32."""
        normalized = (images.float() - self.shift) * self.scale
        logits = mean_over_views(self._call_network, normalized, self.tta)
        return logits.softmax(dim=1) if self.output_type == "probabilities" else logits

    def with_network(
        self, network: nn.Module, memory_format: torch.memory_format | None = None
    ) -> "ExportWrapper":
        """Return a copy around another network, which may take another memory format."""
        other = copy.copy(self)
        other.memory_format = memory_format or self.memory_format
        placed = copy.deepcopy(network).float().to(memory_format=other.memory_format)
        other._modules = {"network": placed.requires_grad_(False).eval()}
        return other

    def _call_network(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.contiguous(memory_format=self.memory_format))
        return logits
