"""Recurrent network on image rows."""

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor, nn

from project.runtime.bounds import Range


class RowLSTM(nn.Module):
    """LSTM over image rows, with a linear layer on the last hidden state.

    Args:
        input_shape: (C, H, W) of one image: a sequence of H rows with C · W features.
        num_classes: number of logits.
        hidden_dim: size of the hidden state.
        layers: stacked LSTM layers.
        dropout: dropout probability between stacked layers; no effect with a single layer.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        hidden_dim: Annotated[int, Range(1)] = 128,
        layers: Annotated[int, Range(1)] = 1,
        dropout: Annotated[float, Range(0, 1)] = 0.0,
    ) -> None:
        super().__init__()
        channels, _, width = input_shape
        self.lstm = nn.LSTM(
            input_size=channels * width,
            hidden_size=hidden_dim,
            num_layers=layers,
            dropout=dropout if layers > 1 else 0.0,
            batch_first=True,
        )
        self.head = nn.Linear(hidden_dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        rows = images.transpose(1, 2).flatten(2)  # B, H, C * W
        outputs, _ = self.lstm(rows)  # B, H, hidden_dim
        return self.head(outputs[:, -1])
