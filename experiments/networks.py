"""The experiments' models."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
import torch.nn.functional as F
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


@final
class TwoLayers(nn.Module):
    """Two tanh layers (`embedding`) and a linear layer (`head`), of features `[n, inputs]`.

    Example:
        >>> sum(p.numel() for p in TwoLayers(196, 16, classes=4).parameters())
        3492
    """

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.head = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[n, classes]`."""
        return self.head(self.embedding(features))


@final
class ConvNets(nn.Module):
    """Several `ConvNet`s of one shape side by side: what each computes, for about half the time of one after another.

    The first convolution reads the common pixels for all networks at once, the second is a grouped one, and the fully
    connected layers are batched matrix products. A parameter's first dimension counts the networks.

    Example:
        >>> several = ConvNets([ConvNet((1, 28, 28), classes=4), ConvNet((1, 28, 28), classes=4)])
        >>> several(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([2, 5, 4])
    """

    def __init__(self, networks: Sequence[ConvNet]) -> None:
        super().__init__()
        self.count = len(networks)
        states = [network.state_dict() for network in networks]
        stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        self.embedding = nn.ParameterDict(_underscored(stacked, "embedding."))
        self.heads = Heads(_underscored(stacked, "head."))

    def embed(self, pixels: Tensor) -> Tensor:
        """Embeddings `[networks, n, width]` of pixels `[n, channels, height, width]`."""
        k, w = self.count, self.embedding
        first = torch.tanh(F.conv2d(pixels, w["0_weight"].flatten(0, 1), w["0_bias"].flatten(), stride=2))
        second = torch.tanh(F.conv2d(first, w["2_weight"].flatten(0, 1), w["2_bias"].flatten(), stride=2, groups=k))
        return second.reshape(len(pixels), k, -1).transpose(0, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits `[networks, n, classes]`."""
        return self.heads(self.embed(pixels))

    def put_into(self, networks: Sequence[ConvNet]) -> None:
        """Copy the weights into networks of the same shape."""
        parts = {"embedding.": dict(self.embedding), "head.": dict(self.heads.weights)}
        for place, network in enumerate(networks):
            network.load_state_dict(
                {
                    start + name.replace("_", "."): weight[place].detach()
                    for start, weights in parts.items()
                    for name, weight in weights.items()
                }
            )


@final
class Heads(nn.Module):
    """The heads of several `ConvNet`s side by side.

    weights: by name in the head, a dot written as an underscore.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterDict(dict(weights))

    def forward(self, embedded: Tensor) -> Tensor:
        """Logits `[networks, n, classes]` of embeddings `[networks, n, width]`."""
        w = self.weights
        hidden = torch.tanh(torch.baddbmm(w["0_bias"][:, None], embedded, w["0_weight"].mT))
        return torch.baddbmm(w["2_bias"][:, None], hidden, w["2_weight"].mT)


def _underscored(stacked: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    """The entries of one part; a parameter's name may not hold a dot."""
    return {name.removeprefix(start).replace(".", "_"): w for name, w in stacked.items() if name.startswith(start)}


@final
class Dense(nn.Module):
    """A tanh layer that can be kept, and a linear head that is made new: small enough to be solved to its minimum.

    Example:
        >>> sum(p.numel() for p in Dense(inputs=100, hidden=16, classes=4).parameters())
        1684
    """

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh())
        self.head = nn.Linear(hidden, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[n, classes]` of features `[n, inputs]`."""
        return self.head(self.embedding(features))
