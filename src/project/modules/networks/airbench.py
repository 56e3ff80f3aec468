"""Network of airbench94, whose first layer is computed from training images."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from project.errors import InputError
from project.runtime.bounds import Range


class ConvGroup(nn.Module):
    """Two 3×3 convolutions, each with batch norm and GELU; max-pooling follows the first convolution."""

    def __init__(self, in_channels: int, channels: int, pool: tuple[int, int], norm_momentum: float) -> None:
        super().__init__()
        self.conv1 = _identity_conv(in_channels, channels)
        self.pool = nn.MaxPool2d(pool)
        self.norm1 = _norm_without_gain(channels, norm_momentum)
        self.conv2 = _identity_conv(channels, channels)
        self.norm2 = _norm_without_gain(channels, norm_momentum)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map features (B, in_channels, H, W) to (B, channels, H // pool, W // pool)."""
        features = F.gelu(self.norm1(self.pool(self.conv1(inputs))))
        return F.gelu(self.norm2(self.conv2(features)))


class Airbench(nn.Module):
    """Network of airbench94 (Jordan 2024, arXiv 2404.00498, sec. 3.1, 3.2 and appendix).

    A frozen convolution whitens patches of 2×2 pixels. Three groups of two convolutions follow, then global
    max-pooling and a linear layer without bias. Batch norms have no scale parameter. For images of at most 8
    pixels per side, later groups do not pool. The paper divides the logits by the number n of features. Here
    the initial weights of the linear layer are divided by n instead, and its learning rate is the paper's
    divided by n².

    The whitening filters are random until `initialize` is called.

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: number of logits.
        widths: channels of the three groups.
        whitening_size: side of the whitened patches, pixels [2].
        norm_momentum: weight of each batch in the running statistics of batch norm [0.4].

    Raises:
        InputError: the number of widths is not three, or the images are smaller than a patch.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        widths: Annotated[tuple[int, int, int], Range(1)] = (64, 256, 256),
        whitening_size: Annotated[int, Range(1)] = 2,
        norm_momentum: Annotated[float, Range(0, 1)] = 0.4,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        if len(widths) != 3:
            raise InputError(f"model.widths={list(widths)}: expected three widths, one per group")
        if min(height, width) < whitening_size:
            raise InputError(
                f"model.whitening_size={whitening_size}: must be at most {min(height, width)}, the side of "
                f"data.input_shape={list(input_shape)}"
            )
        # Each whitening direction has two filters of opposite sign.
        self.whitening = nn.Conv2d(channels, 2 * channels * whitening_size**2, whitening_size)
        self.whitening.weight.requires_grad = False
        sides = (height - whitening_size + 1, width - whitening_size + 1)
        groups = []
        in_channels = self.whitening.out_channels
        for group_channels in widths:
            pool = (min(2, sides[0]), min(2, sides[1]))
            groups.append(ConvGroup(in_channels, group_channels, pool, norm_momentum))
            sides = (sides[0] // pool[0], sides[1] // pool[1])
            in_channels = group_channels
        self.groups = nn.Sequential(*groups)
        self.head = nn.Linear(in_channels, num_classes, bias=False)
        with torch.no_grad():
            self.head.weight /= self.head.weight.std() * in_channels

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        features = self.groups(F.gelu(self.whitening(images)))  # B, C', H', W'
        features = F.max_pool2d(features, features.shape[2:]).flatten(1)  # B, C'
        return self.head(features)

    @torch.no_grad()
    def initialize(self, images: Tensor) -> None:
        """Compute the whitening filters from normalized training images (N, C, H, W)."""
        filters = whitening_filters(images, self.whitening.kernel_size[0])  # C * s * s, C, s, s
        self.whitening.weight.copy_(torch.cat([filters, -filters]))

    def parameter_roles(self) -> Mapping[str, list[Tensor]]:
        """Return the trainable parameters by role, for optimizers and schedules with options per role."""
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        filters = [module for module in self.groups.modules() if isinstance(module, nn.Conv2d)]
        assert self.whitening.bias is not None
        return {
            "whitening": [self.whitening.bias],
            "norms": [norm.bias for norm in norms],
            "filters": [conv.weight for conv in filters],
            "head": [self.head.weight],
        }


def whitening_filters(images: Tensor, size: int, eps: float = 5e-4) -> Tensor:
    """Return filters whose outputs on image patches are uncorrelated and have equal power.

    Each filter is an eigenvector of the second-moment matrix of the patches, divided by the square root of
    its eigenvalue plus `eps`. `eps` limits the amplification of directions with little variance. Filters are
    in ascending order of eigenvalue; the choice of signs does not depend on rounding errors.

    Args:
        images: normalized images (N, C, H, W).
        size: side of a patch, pixels.
        eps: added to the eigenvalues.

    Returns:
        Filters (C * size * size, C, size, size).
    """
    channels = images.shape[1]
    features = channels * size * size
    moments = torch.zeros(features, features, device=images.device)
    patches = 0
    for part in images.float().split(500):
        columns = F.unfold(part, size).transpose(0, 1).flatten(1)  # C * size * size, n * positions
        moments += columns @ columns.T
        patches += columns.shape[1]
    # On the CPU in double precision, so that the filters are the same on every device.
    eigenvalues, eigenvectors = torch.linalg.eigh(moments.cpu().double() / patches)
    signs = (torch.linspace(1, 2, features, dtype=torch.double) @ eigenvectors).sign()
    eigenvectors = eigenvectors * signs
    scaled = eigenvectors.T / (eigenvalues.clamp(min=0).view(-1, 1) + eps).sqrt()
    return scaled.float().view(features, channels, size, size).to(images.device)


def _identity_conv(in_channels: int, channels: int) -> nn.Conv2d:
    """Return a 3×3 convolution whose first filters are initialized to the identity."""
    conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(conv.weight[:in_channels])
    return conv


def _norm_without_gain(channels: int, momentum: float) -> nn.BatchNorm2d:
    """Return a batch norm whose scale is frozen at 1."""
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=momentum)
    norm.weight.requires_grad = False
    return norm
