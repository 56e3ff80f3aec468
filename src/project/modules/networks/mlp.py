"""Multi-layer perceptron on vectors or flattened images."""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from torch import Tensor, nn

from project.errors import InputError
from project.modules.networks.dropout import Dropout
from project.runtime.bounds import Range

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}


class MLP(nn.Module):
    """Fully connected layers, each followed by an activation and dropout.

    Args:
        input_shape: (C, H, W) of one image, or (F,) of one vector.
        num_classes: number of logits.
        widths: width of each hidden layer; an empty list gives a linear classifier.
        activation: a key of `ACTIVATIONS`; `identity` makes the network linear.
        dropout: probability of dropping a hidden feature.

    Raises:
        InputError: unknown activation.
    """

    TAKES_VECTORS: ClassVar[bool] = True

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        widths: Annotated[Sequence[int], Range(1)] = (128,),
        activation: Literal["relu", "gelu", "silu", "tanh", "sigmoid", "identity"] = "relu",
        dropout: Annotated[float, Range(0, 1)] = 0.0,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise InputError(f"model.activation={activation}: choose from {', '.join(ACTIVATIONS)}")
        layers: list[nn.Module] = [nn.Flatten()]
        features = math.prod(input_shape)
        for width in widths:
            layers += [nn.Linear(features, width), ACTIVATIONS[activation]()]
            if dropout > 0:
                layers.append(Dropout(dropout))
            features = width
        layers.append(nn.Linear(features, num_classes))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) or vectors (B, F) to logits (B, num_classes)."""
        return self.layers(images)
