"""Small convolutional networks of two or three layers, for MNIST and CIFAR-10."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from project.errors import InputError
from project.modules.networks.dropout import Dropout
from project.runtime.bounds import Range


class _ConvClassifier(nn.Module):
    """Convolutional body with a fully connected head."""

    def __init__(self, body: nn.Sequential, head: nn.Sequential) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        features = self.body(images).flatten(1)  # B, C' * H' * W'
        return self.head(features)


class CNN3x3(_ConvClassifier):
    """Two 3×3 convolutions, max-pooling and one hidden layer, as in PyTorch's MNIST example.

    On 28×28 images the first linear layer has 64 · 12 · 12 = 9,216 inputs.

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: number of logits.
        channels: filters of the two convolutions.
        hidden_dim: width of the hidden layer.
        dropout: probability before and after the hidden layer.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        channels: Annotated[tuple[int, int], Range(1)] = (32, 64),
        hidden_dim: Annotated[int, Range(1)] = 128,
        dropout: Annotated[tuple[float, float], Range(0, 1)] = (0.25, 0.5),
    ) -> None:
        _require_pair("model.channels", channels)
        _require_pair("model.dropout", dropout)
        body = nn.Sequential(
            nn.Conv2d(input_shape[0], channels[0], kernel_size=3),
            nn.ReLU(),
            nn.Conv2d(channels[0], channels[1], kernel_size=3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            Dropout(dropout[0]),
        )
        head = nn.Sequential(
            nn.Linear(_count_features(body, input_shape), hidden_dim),
            nn.ReLU(),
            Dropout(dropout[1]),
            nn.Linear(hidden_dim, num_classes),
        )
        super().__init__(body, head)


class CNN5x5(_ConvClassifier):
    """Two 5×5 convolutions with max-pooling before each activation, channel dropout and one hidden layer.

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: number of logits.
        channels: filters of the two convolutions.
        hidden_dim: width of the hidden layer.
        dropout: probability of dropping a channel of the second convolution, and a hidden feature.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        channels: Annotated[tuple[int, int], Range(1)] = (10, 20),
        hidden_dim: Annotated[int, Range(1)] = 50,
        dropout: Annotated[float, Range(0, 1)] = 0.5,
    ) -> None:
        _require_pair("model.channels", channels)
        body = nn.Sequential(
            nn.Conv2d(input_shape[0], channels[0], kernel_size=5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(channels[0], channels[1], kernel_size=5),
            nn.Dropout2d(dropout),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        head = nn.Sequential(
            nn.Linear(_count_features(body, input_shape), hidden_dim),
            nn.ReLU(),
            Dropout(dropout),
            nn.Linear(hidden_dim, num_classes),
        )
        super().__init__(body, head)


class CNNBatchNorm(_ConvClassifier):
    """Three convolutions with batch norm and no hidden layer: high accuracy at low cost.

    Max-pooling precedes the batch norm of the first two convolutions, which normalizes fewer pixels. In
    evaluation mode the order does not change the result if the scales of the batch norm are positive.

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: number of logits.
        channels: filters of the three convolutions.
        kernel_size: side of the filters of the first convolution, pixels [5]; other filters are 3×3.
        norm_momentum: weight of each batch in the running statistics of batch norm [0.4].
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        channels: Annotated[tuple[int, int, int], Range(1)] = (16, 32, 64),
        kernel_size: Annotated[int, Range(1)] = 5,
        norm_momentum: Annotated[float, Range(0, 1)] = 0.4,
    ) -> None:
        if len(channels) != 3:
            raise InputError(f"model.channels={list(channels)}: expected three values, one per convolution")
        layers: list[nn.Module] = []
        in_channels = input_shape[0]
        for number, out_channels in enumerate(channels):
            layers.append(nn.Conv2d(in_channels, out_channels, kernel_size if number == 0 else 3, bias=False))
            if number < 2:
                layers.append(nn.MaxPool2d(2))
            layers += [nn.BatchNorm2d(out_channels, momentum=norm_momentum), nn.ReLU()]
            in_channels = out_channels
        body = nn.Sequential(*layers)
        head = nn.Sequential(nn.Linear(_count_features(body, input_shape), num_classes))
        super().__init__(body, head)


class LeNet(_ConvClassifier):
    """LeNet-5 (LeCun et al. 1998, p. 7) in its common variant with ReLU and max-pooling.

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: number of logits.
        channels: filters of the two 5×5 convolutions.
        hidden_dim: widths of the two hidden layers.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        channels: Annotated[tuple[int, int], Range(1)] = (6, 16),
        hidden_dim: Annotated[tuple[int, int], Range(1)] = (120, 84),
    ) -> None:
        _require_pair("model.channels", channels)
        _require_pair("model.hidden_dim", hidden_dim)
        body = nn.Sequential(
            nn.Conv2d(input_shape[0], channels[0], kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels[0], channels[1], kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        head = nn.Sequential(
            nn.Linear(_count_features(body, input_shape), hidden_dim[0]),
            nn.ReLU(),
            nn.Linear(hidden_dim[0], hidden_dim[1]),
            nn.ReLU(),
            nn.Linear(hidden_dim[1], num_classes),
        )
        super().__init__(body, head)


def _require_pair(key: str, values: Sequence[float]) -> None:
    if len(values) != 2:
        raise InputError(f"{key}={list(values)}: expected two values, for the first and the second layer")


def _count_features(body: nn.Module, input_shape: Sequence[int]) -> int:
    """Return the number of features per image that `body` outputs, from a forward pass of zeros."""
    try:
        with torch.no_grad():
            output = body.eval()(torch.zeros(1, *input_shape))
    except RuntimeError as error:
        raise InputError(
            f"data.input_shape={list(input_shape)}: too small for this network ({error}); "
            "use larger images (data.resize=32) or another model"
        ) from error
    body.train()
    return output.numel()
