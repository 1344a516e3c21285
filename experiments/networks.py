"""The experiments' models."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from stagetrace.errors import DataError


@final
class ConvNet(nn.Module):
    """A small convolutional network: tanh everywhere, no output activation.

    image: channels, height and width.

    `embedding` (the convolutions) is what a fine-tuning can keep; `head` (the fully connected layers) is made new.

    Example:
        >>> sum(p.numel() for p in ConvNet((1, 28, 28), classes=4).parameters())
        11780
    """

    def __init__(self, image: Sequence[int], classes: int) -> None:
        super().__init__()
        channels, height, width = image
        if min(height, width) < 13:
            raise DataError(f"ConvNet needs images of at least 13 x 13 pixels, got {height} x {width}")
        self.embedding = nn.Sequential(
            nn.Conv2d(channels, 8, kernel_size=5, stride=2),
            nn.Tanh(),
            nn.Conv2d(8, 16, kernel_size=5, stride=2),
            nn.Tanh(),
            nn.Flatten(),
        )
        with torch.no_grad():
            width_of_embedding = self.embedding(torch.zeros(1, *image)).shape[1]
        self.head = nn.Sequential(nn.Linear(width_of_embedding, 32), nn.Tanh(), nn.Linear(32, classes))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits `[n, classes]` of pixels `[n, channels, height, width]`."""
        return self.head(self.embedding(pixels))
