"""A network in the shape of ELMo, all of standard PyTorch modules.

A word is read by its characters: a convolution of each width with `relu(max over the word)`, two highway layers, and a
projection. Two LSTMs with projection read the sentence forwards and two read it backwards, each direction on its own,
since a direction that sees the other one's states would see the word that it is to predict. The second layer's output
is added to the first's.

`Elmo` is all that the stages share (the paper's W); what stands on top of it is in `elmo_models.py`.

Source: Peters et al. (2018), Deep contextualized word representations; the widths are those of Jozefowicz et al.
(2016), Exploring the limits of language modeling.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagetrace.errors import refuse

Batch = Mapping[str, Tensor]
"""What `text.Reader` makes of some sentences; see there for the entries."""


@final
@dataclass(frozen=True)
class Shape:
    """The network's numbers.

    characters: rows of the table of characters; character: length of one. filters: width -> how many.
    projection: of words and of LSTM outputs; cells: of each LSTM.
    """

    characters: int = 262
    character: int = 16
    filters: tuple[tuple[int, int], ...] = ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024))
    highways: int = 2
    projection: int = 512
    cells: int = 4096

    def __post_init__(self) -> None:
        if not self.projection < self.cells:
            refuse(
                f"Shape(projection={self.projection}, cells={self.cells}): an LSTM projects its cells to fewer "
                "numbers; type a projection below cells"
            )

    @property
    def features(self) -> int:
        """What a sentence's features count: both directions."""
        return 2 * self.projection


@final
class Words(nn.Module):
    """Characters `[words, longest]` (0 pads) -> vectors `[words, projection]`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = sum(count for _, count in shape.filters)
        self.characters = nn.Embedding(shape.characters, shape.character)
        self.filters = nn.ModuleList(nn.Conv1d(shape.character, count, wide) for wide, count in shape.filters)
        self.highways = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(shape.highways))
        self.projection = nn.Linear(width, shape.projection)
        with torch.no_grad():
            for bias in (bias for name, bias in self.highways.named_parameters() if name.endswith("bias")):
                bias[width:] = 1.0  # carries its input on at first

    def forward(self, characters: Tensor) -> Tensor:
        x = self.characters(characters)
        x = torch.cat([_slid(convolution, x).amax(dim=1) for convolution in self.filters], dim=1).relu()
        for highway in self.highways:
            new, carry = highway(x).chunk(2, dim=1)
            keep = carry.sigmoid()
            x = keep * x + (1 - keep) * new.relu()
        return self.projection(x)


def _slid(convolution: Any, x: Tensor) -> Tensor:
    """The convolution of `[words, letters, character]`, `[words, places, filters]`, as one matrix product.

    PyTorch's own convolution is slow where the kernels that recurrent layers cannot be differentiated with are off.
    """
    weight, bias = convolution.weight, convolution.bias
    wide = weight.shape[2]
    places = x.shape[1] - wide + 1
    windows = torch.cat([x[:, start : start + places] for start in range(wide)], dim=2)
    return F.linear(windows, weight.transpose(1, 2).flatten(1), bias)


@final
class Direction(nn.Module):
    """Word vectors `[batch, time, projection]`, in reading order, -> the states of both layers, `[batch, time,
    projection]` each.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.first, self.second = (
            nn.LSTM(shape.projection, shape.cells, proj_size=shape.projection, batch_first=True) for _ in range(2)
        )
        for layer in (self.first, self.second):
            _as_published(layer, shape.cells)

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor]:
        with warnings.catch_warnings():  # the kernel that it then takes is the one that has all derivatives
            warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")
            first = self.first(words)[0]
            return first, first + self.second(first)[0]


def _as_published(layer: nn.LSTM, cells: int) -> None:
    """One bias, with 1 for the forget gate: PyTorch's second bias adds to the first, and stays a constant 0."""
    bias, constant = (layer.get_parameter(name) for name in ("bias_ih_l0", "bias_hh_l0"))
    with torch.no_grad():
        bias.zero_()
        bias[cells : 2 * cells] = 1.0
        constant.zero_()
    constant.requires_grad_(False)


@final
class Elmo(nn.Module):
    """Sentences -> for each of the layers (words, first, second) its states, `[batch, time, 2 projection]`.

    The forward half of a state knows the words up to its own, the backward half those from its own on.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.words = Words(shape)
        self.forwards, self.backwards = Direction(shape), Direction(shape)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        # each distinct word once: a batch repeats its commonest words many times
        words = F.embedding(batch["sentences"], self.words(batch["characters"]))
        ahead = self.forwards(words)
        back = [_turned(states, batch) for states in self.backwards(_turned(words, batch))]
        first, second = (torch.cat(both, dim=2) for both in zip(ahead, back, strict=True))
        return torch.cat([words, words], dim=2), first, second


def _turned(states: Tensor, batch: Batch) -> Tensor:
    """Each sentence from its last token to its first; padding stays behind it. Twice is the same again."""
    return states.gather(1, batch["turned"].unsqueeze(2).expand_as(states))
