"""The network as it leaves: images in as they are in files, logits or probabilities out."""

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from project.modules.tta import mean_over_views

Output = Literal["logits", "probabilities"]


class Deployed(nn.Module):
    """A network with what stands before and behind it, in evaluation mode and single precision.

    It computes what the data module's loader, the classifier's `test_step` and a softmax would, by the same
    operations in the same order.

    Args:
        network: maps normalized images (B, C, H, W) to logits (B, K); it is copied.
        mean: of each channel, on the scale [0, 1].
        std: likewise.
        views: changed copies of an image whose logits are averaged (see `modules.views`).
        output: what comes out.
        memory_format: in which order of memory the network takes images.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        views: str = "none",
        output: Output = "logits",
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).float().requires_grad_(False)
        self.views = views
        self.output = output
        self.memory_format = memory_format
        self.register_buffer("shift", 255 * torch.tensor(mean).view(-1, 1, 1))  # C, 1, 1
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(-1, 1, 1)))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) uint8 to logits or probabilities (B, K) float32."""
        normalized = (images.float() - self.shift) * self.scale
        logits = mean_over_views(self._ordered, normalized, self.views)
        return logits.softmax(dim=1) if self.output == "probabilities" else logits

    def with_network(
        self, network: nn.Module, memory_format: torch.memory_format | None = None
    ) -> "Deployed":
        """The same around another network, which may take images in another order of memory."""
        other = copy.copy(self)
        other.memory_format = memory_format or self.memory_format
        placed = copy.deepcopy(network).float().to(memory_format=other.memory_format)
        other._modules = {"network": placed.requires_grad_(False).eval()}
        return other

    def _ordered(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.contiguous(memory_format=self.memory_format))
        return logits
