"""A small convolutional network: an embedding that both stages share, and a head for each."""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@final
class Convolution(nn.Module):
    """3 x 3, stride 2, padding 1, as a matrix product of patches: in float64 on a CPU several times faster."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9 * inputs, outputs) / (9 * inputs) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, images: Tensor) -> Tensor:
        """`[n, inputs, side, side]` -> `[n, outputs, side / 2, side / 2]`."""
        patches = F.pad(images, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2)  # [n, inputs, side / 2, side / 2, 3, 3]
        columns = patches.permute(0, 2, 3, 1, 4, 5).flatten(3)
        return (columns @ self.weight + self.bias).permute(0, 3, 1, 2)


@final
class Network(nn.Module):
    """Two convolutions with a tanh after each, and a linear head; smooth, so that second derivatives mean something."""

    def __init__(self, channels: tuple[int, int], classes: int) -> None:
        super().__init__()
        first, second = channels
        self.embedding = nn.Sequential(
            Convolution(1, first), nn.Tanh(), Convolution(first, second), nn.Tanh(), nn.Flatten()
        )
        self.head = nn.Linear(4 * second, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[n, classes]` of images `[n, 1, 8, 8]`."""
        return self.head(self.embedding(images))
