"""Convolutional autoencoders for images of any size."""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from project.errors import InputError
from project.runtime.bounds import Range


class LatentSample(NamedTuple):
    """Output of a variational autoencoder for B images and D latent variables."""

    reconstructions: Tensor  # B, C, H, W
    mean: Tensor  # B, D: of the approximate posterior
    log_variance: Tensor  # B, D


class _ConvAutoencoder(nn.Module):
    """Encoder of 3×3 convolutions with stride 2, and a decoder of transposed convolutions in reverse order.

    Args:
        input_shape: (C, H, W) of one image.
        latent_dim: number of latent variables.
        channels: filters of the convolutions; each one halves the image's sides.
        num_codes: outputs of the encoder per latent variable.

    Raises:
        InputError: there are no channels.
    """

    def __init__(
        self, input_shape: Sequence[int], latent_dim: int, channels: Sequence[int], num_codes: int
    ) -> None:
        super().__init__()
        if not channels:
            raise InputError("model.channels=[]: expected at least one number of filters, such as [16,32]")
        self.latent_dim = latent_dim
        layers: list[nn.Module] = []
        sides = [(input_shape[1], input_shape[2])]
        in_channels = input_shape[0]
        for out_channels in channels:
            layers += [nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1), nn.ReLU()]
            sides.append(((sides[-1][0] + 1) // 2, (sides[-1][1] + 1) // 2))
            in_channels = out_channels
        features = in_channels * sides[-1][0] * sides[-1][1]
        self.encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, num_codes * latent_dim))
        layers = [nn.Linear(latent_dim, features), nn.ReLU(), nn.Unflatten(1, (in_channels, *sides[-1]))]
        for number, out_channels in enumerate([*reversed(channels[:-1]), input_shape[0]]):
            height, width = sides[-2 - number]
            # A side of n pixels becomes 2n - 1, plus the padding.
            padding = (1 - height % 2, 1 - width % 2)
            layers.append(
                nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=padding)
            )
            layers.append(nn.ReLU())
            in_channels = out_channels
        self.decoder = nn.Sequential(*layers[:-1])  # the last layer has no activation


class Autoencoder(_ConvAutoencoder):
    """Convolutional autoencoder (Hinton and Salakhutdinov 2006, Science 313).

    Args:
        input_shape: (C, H, W) of one image.
        latent_dim: number of latent variables [32].
        channels: filters of the convolutions; each one halves the image's sides [32, 64].

    Raises:
        InputError: there are no channels.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: Annotated[int, Range(1)] = 32,
        channels: Annotated[Sequence[int], Range(1)] = (32, 64),
    ) -> None:
        super().__init__(input_shape, latent_dim, channels, num_codes=1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to reconstructions of the same shape."""
        reconstructions: Tensor = self.decoder(self.encoder(images))
        return reconstructions


class VariationalAutoencoder(_ConvAutoencoder):
    """Convolutional network of a variational autoencoder (Kingma and Welling 2014, arXiv 1312.6114).

    The approximate posterior is a normal distribution with diagonal covariance.

    Args:
        input_shape: (C, H, W) of one image.
        latent_dim: number of latent variables [16].
        channels: filters of the convolutions; each one halves the image's sides [32, 64].

    Raises:
        InputError: there are no channels.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: Annotated[int, Range(1)] = 16,
        channels: Annotated[Sequence[int], Range(1)] = (32, 64),
    ) -> None:
        super().__init__(input_shape, latent_dim, channels, num_codes=2)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> LatentSample:
        """Reconstruct images (B, C, H, W) from a sample of the posterior (ibid., sec. 2.4).

        Args:
            images: (B, C, H, W).
            noise: (B, D) standard normal; None: drawn in training mode, zero in evaluation mode.
        """
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        if noise is None and self.training:
            noise = torch.randn_like(mean)
        latent = mean if noise is None else mean + (0.5 * log_variance).exp() * noise
        return LatentSample(self.decoder(latent), mean, log_variance)
