"""U-Net for dense predictions on images of any size."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from project.errors import InputError
from project.runtime.bounds import Range


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015, arXiv 1505.04597, fig. 1) with batch norm and padded convolutions.

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: number of logits per pixel.
        width: channels of the first level; each further level has twice as many [16].
        depth: number of times that the sides are halved [3].

    Raises:
        InputError: the images are too small for the depth.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        width: Annotated[int, Range(1)] = 16,
        depth: Annotated[int, Range(1)] = 3,
    ) -> None:
        super().__init__()
        if min(input_shape[1:]) < 2**depth:
            raise InputError(
                f"model.depth={depth}: images of data.input_shape={list(input_shape)} are too small "
                f"(expected sides of at least {2**depth}); lower model.depth, or use larger images"
            )
        channels = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            _double_conv(before, after)
            for before, after in zip([input_shape[0], *channels], channels, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(2 * wide, wide, 2, stride=2) for wide in reversed(channels[:-1])
        )
        self.merge = nn.ModuleList(_double_conv(2 * wide, wide) for wide in reversed(channels[:-1]))
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes, H, W)."""
        features, skipped = images, []
        for level, down in enumerate(self.down):
            features = down(features if level == 0 else self.pool(features))
            skipped.append(features)
        skipped.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            skip = skipped.pop()
            features = merge(torch.cat([skip, up(features, output_size=skip.shape[2:])], dim=1))
        logits: Tensor = self.head(features)
        return logits


def _double_conv(in_channels: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (in_channels, channels):
        layers += [
            nn.Conv2d(before, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)
