"""Examples of different lengths: chunks of like ones, the same mean."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from stagetrace import Chain, GaussNewton, Hessian, Stage
from stagetrace.curvature.mean import MeanCurvature
from stagetrace.curvature.operator import SumOperator
from stagetrace.curvature.order import by_size
from stagetrace.objectives import Classification

WORDS, CLASSES, DIMENSIONS, EXAMPLES = 7, 3, 2, 300


class Bag(nn.Module):
    """The tanh of the mean of a text's vectors; word 0 is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.Embedding(WORDS, DIMENSIONS)
        self.head = nn.Linear(DIMENSIONS, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        kept = (words > 0).to(self.head.weight).unsqueeze(-1)
        return self.head(torch.tanh((self.vectors(words) * kept).sum(dim=1) / kept.sum(dim=1)))


widths: list[int] = []


def padded(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    words = pad_sequence([words for words, _ in items], batch_first=True)
    widths.append(words.numel())
    return words, torch.stack([label for _, label in items])


def texts(lengths: list[int]) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randint(1, WORDS, (length,), generator=generator), torch.randint(0, CLASSES, (), generator=generator))
        for length in lengths
    ]


def bound(data):
    torch.manual_seed(0)
    stage = Stage("texts", model=Bag().double(), objective=Classification(), data=data, collate=padded)
    return Chain(stage)["texts"]


def mean_of(operator) -> MeanCurvature:
    assert isinstance(operator, SumOperator)
    assert isinstance(operator.left, MeanCurvature)
    return operator.left


LENGTHS = [1 + (7 * place) % 40 for place in range(EXAMPLES)]


@pytest.mark.parametrize("choice", [Hessian, GaussNewton])
def test_the_matrix_is_that_of_the_examples_one_by_one(choice) -> None:
    data = texts(LENGTHS)
    each = sum(choice().operator(bound([one])).to_dense() for one in data[:40]) / 40
    torch.testing.assert_close(choice().operator(bound(data[:40])).to_dense(), each)


def test_chunks_are_of_like_lengths_and_little_is_padded() -> None:
    whole = bound(texts(LENGTHS))
    operator = Hessian().operator(whole)
    mean = mean_of(operator)
    lengths = [LENGTHS[index] for index in mean.indices]
    assert lengths == sorted(lengths)
    assert sorted(mean.indices) == list(range(EXAMPLES))
    widths.clear()
    operator.apply(torch.ones(operator.size, 1, dtype=torch.float64))
    assert sum(widths) < 1.4 * sum(LENGTHS) < 0.8 * 40 * EXAMPLES


def test_examples_of_one_size_keep_their_order() -> None:
    whole = bound(texts([5] * 30))
    assert list(mean_of(Hessian().operator(whole)).indices) == list(range(30))
    assert by_size(whole.stage.examples, range(30)) == (range(30), False)
