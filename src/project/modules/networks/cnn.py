"""Small convolutional networks: the classic tutorial models for MNIST and CIFAR-10."""

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor, nn

from project.errors import InputError
from project.modules.networks.shapes import flat_features, pair
from project.runtime.bounds import Range


class _ConvClassifier(nn.Module):
    """A convolutional body and a fully connected head; subclasses say what each holds."""

    def __init__(self, body: nn.Sequential, head: nn.Sequential) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        features = self.body(images).flatten(1)  # B, C' * H' * W'
        return self.head(features)


class CNN(_ConvClassifier):
    """Two 3×3 convolutions, one max-pool, one hidden layer, as in PyTorch's MNIST example.

    On 28×28 images the first linear layer has 64 · 12 · 12 = 9,216 inputs.

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: number of logits.
        channels: filters of the two convolutions.
        hidden: width of the hidden layer.
        dropout: probability before and after the hidden layer.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        channels: Annotated[tuple[int, int], Range(1)] = (32, 64),
        hidden: Annotated[int, Range(1)] = 128,
        dropout: Annotated[tuple[float, float], Range(0, 1)] = (0.25, 0.5),
    ) -> None:
        pair("model.channels", channels)
        pair("model.dropout", dropout)
        body = nn.Sequential(
            nn.Conv2d(input_shape[0], channels[0], kernel_size=3),
            nn.ReLU(),
            nn.Conv2d(channels[0], channels[1], kernel_size=3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(dropout[0]),
        )
        head = nn.Sequential(
            nn.Linear(flat_features(body, input_shape), hidden),
            nn.ReLU(),
            nn.Dropout(dropout[1]),
            nn.Linear(hidden, num_classes),
        )
        super().__init__(body, head)


class LeNet(_ConvClassifier):
    """LeNet-5 in its common ReLU and max-pool form (LeCun et al. 1998, p. 7).

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: number of logits.
        channels: filters of the two 5×5 convolutions.
        hidden: widths of the two hidden layers.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        channels: Annotated[tuple[int, int], Range(1)] = (6, 16),
        hidden: Annotated[tuple[int, int], Range(1)] = (120, 84),
    ) -> None:
        pair("model.channels", channels)
        pair("model.hidden", hidden)
        body = nn.Sequential(
            nn.Conv2d(input_shape[0], channels[0], kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels[0], channels[1], kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        head = nn.Sequential(
            nn.Linear(flat_features(body, input_shape), hidden[0]),
            nn.ReLU(),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(),
            nn.Linear(hidden[1], num_classes),
        )
        super().__init__(body, head)


class ConvNet(_ConvClassifier):
    """Two 5×5 convolutions with Dropout2d, pooling before the activation.

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: number of logits.
        channels: filters of the two convolutions.
        hidden: width of the hidden layer.
        dropout: probability of dropping a channel of the second convolution, and a hidden feature.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        channels: Annotated[tuple[int, int], Range(1)] = (10, 20),
        hidden: Annotated[int, Range(1)] = 50,
        dropout: Annotated[float, Range(0, 1)] = 0.5,
    ) -> None:
        pair("model.channels", channels)
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
            nn.Linear(flat_features(body, input_shape), hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )
        super().__init__(body, head)


class BatchNormCNN(_ConvClassifier):
    """Three convolutions with batch norm, for much accuracy in little time.

    The first two are pooled before they are normalized: what follows sees a quarter of the pixels, and the
    result is the same as long as gains are positive.

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: number of logits.
        channels: filters of the three convolutions.
        kernel_size: side of the first one's filters, pixels; the others' are 3×3.
        norm_momentum: share of each batch in the running statistics; large enough for short trainings.
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
            raise InputError(f"model.channels={list(channels)}: three are needed, one for each convolution")
        layers: list[nn.Module] = []
        in_channels = input_shape[0]
        for number, out_channels in enumerate(channels):
            layers.append(nn.Conv2d(in_channels, out_channels, kernel_size if number == 0 else 3, bias=False))
            if number < 2:
                layers.append(nn.MaxPool2d(2))
            layers += [nn.BatchNorm2d(out_channels, momentum=norm_momentum), nn.ReLU()]
            in_channels = out_channels
        body = nn.Sequential(*layers)
        head = nn.Sequential(nn.Linear(flat_features(body, input_shape), num_classes))
        super().__init__(body, head)
