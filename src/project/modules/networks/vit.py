"""Vision transformer for small images."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from project.errors import InputError
from project.modules.networks.dropout import Dropout
from project.modules.networks.stochastic_depth import drop_probabilities, drop_residual
from project.runtime.bounds import Range


class ViT(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021, sec. 3.1) with mean-pooled patch tokens.

    Mean pooling instead of a class token follows Beyer et al. 2022 (arXiv 2205.01580). Images whose sides are
    not multiples of `patch_size` are zero-padded on the right and at the bottom.

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: number of logits.
        patch_size: side of a square patch, pixels [4].
        dim: features per token.
        depth: number of transformer blocks.
        heads: number of attention heads; must divide `dim`.
        mlp_ratio: hidden width of each MLP relative to `dim`.
        dropout: dropout probability in attention and MLP.
        stochastic_depth: probability that training skips the last block's attention, and likewise its MLP, of
            an image; it grows linearly from the first block on (Huang et al. 2016, eq. 4) [0].

    Raises:
        InputError: `heads` does not divide `dim`.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        patch_size: Annotated[int, Range(1)] = 4,
        dim: Annotated[int, Range(1)] = 128,
        depth: Annotated[int, Range(1)] = 4,
        heads: Annotated[int, Range(1)] = 4,
        mlp_ratio: Annotated[float, Range(above=0)] = 2.0,
        dropout: Annotated[float, Range(0, 1)] = 0.0,
        stochastic_depth: Annotated[float, Range(0, below=1)] = 0.0,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise InputError(f"model.heads={heads}: must divide model.dim={dim}")
        channels, height, width = input_shape
        if patch_size > max(height, width):
            raise InputError(
                f"model.patch_size={patch_size}: larger than the images, "
                f"data.input_shape={list(input_shape)}; choose at most {max(height, width)}"
            )
        self.padding = (0, -width % patch_size, 0, -height % patch_size)
        patches = -(-height // patch_size) * -(-width // patch_size)
        self.embed = nn.Conv2d(channels, dim, kernel_size=patch_size, stride=patch_size)
        self.position = nn.Parameter(torch.randn(1, patches, dim) * 0.02)
        block = nn.TransformerEncoderLayer(
            d_model=dim,
            nhead=heads,
            dim_feedforward=int(dim * mlp_ratio),
            dropout=dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(
            block, num_layers=depth, norm=nn.LayerNorm(dim), enable_nested_tensor=False
        )
        for layer, probability in zip(
            self.blocks.layers, drop_probabilities(stochastic_depth, depth), strict=True
        ):
            layer.dropout, layer.dropout1, layer.dropout2 = (Dropout(dropout) for _ in range(3))
            if probability:  # these modules are the last of each residual branch
                layer.dropout1 = nn.Sequential(layer.dropout1, drop_residual(probability))
                layer.dropout2 = nn.Sequential(layer.dropout2, drop_residual(probability))
        self.head = nn.Linear(dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        patches = self.embed(F.pad(images, self.padding))  # B, dim, H / patch, W / patch
        tokens = patches.flatten(2).transpose(1, 2) + self.position  # B, patches, dim
        return self.head(self.blocks(tokens).mean(dim=1))
