"""Residual networks for small images."""

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional as F

from project.errors import InputError
from project.modules.networks.stochastic_depth import drop_probabilities, drop_residual
from project.runtime.bounds import Range

FOUR_STAGES = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def blocks_per_stage(depth: int) -> tuple[int, ...]:
    """Return the number of basic blocks per stage: four stages for depths 10, 18 and 34, three for 6n + 2.

    Raises:
        InputError: no network has this depth.
    """
    if depth in FOUR_STAGES:
        return FOUR_STAGES[depth]
    if depth >= 8 and depth % 6 == 2:
        return (depth // 6,) * 3
    raise InputError(f"model.depth={depth}: choose 10, 18, 34, or 6n + 2 (8, 14, 20, 32, 44, 56, 110)")


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm and a shortcut (He et al. 2016, fig. 2).

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        stride: stride of the first convolution.
        drop_probability: probability that training skips the convolutions of an image [0].
    """

    def __init__(self, in_channels: int, channels: int, stride: int, drop_probability: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        # A block that is initialized to the identity trains better (Goyal et al. 2017, sec. 5.1).
        nn.init.zeros_(self.norm2.weight)
        self.drop = drop_residual(drop_probability)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, inputs: Tensor) -> Tensor:
        """Map features (B, in_channels, H, W) to (B, channels, H / stride, W / stride)."""
        features = F.relu(self.norm1(self.conv1(inputs)))
        return F.relu(self.drop(self.norm2(self.conv2(features))) + self.shortcut(inputs))


class ResNet(nn.Module):
    """Residual network with a 3×3 stem and no initial pooling (He et al. 2016, sec. 4.2).

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: number of logits.
        depth: number of layers with weights. Depth 20 with width 16 is the paper's smallest network for
            CIFAR-10; depth 18 with width 64 is a common larger one.
        width: channels of the first stage; each later stage has twice as many.
        stochastic_depth: probability that training skips the last block of an image; it grows linearly from
            the first block on (Huang et al. 2016, eq. 4) [0].

    Raises:
        InputError: no network has this depth.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        depth: Annotated[int, Range(1)] = 20,
        width: Annotated[int, Range(1)] = 16,
        stochastic_depth: Annotated[float, Range(0, below=1)] = 0.0,
    ) -> None:
        super().__init__()
        counts = blocks_per_stage(depth)
        probabilities = iter(drop_probabilities(stochastic_depth, sum(counts)))
        layers: list[nn.Module] = [
            nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
        for stage, blocks in enumerate(counts):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(BasicBlock(channels, width * 2**stage, stride, next(probabilities)))
                channels = width * 2**stage
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        features = self.body(images)  # B, channels, H', W'
        return self.head(features.mean(dim=(2, 3)))
