"""Examples of different lengths: chunks of like ones, the same mean."""

import pytest
import torch

from stagetrace import Chain, GaussNewton, Hessian, Stage
from stagetrace.curvature.mean import MeanCurvature
from stagetrace.curvature.operator import SumOperator
from stagetrace.objectives import Classification
from stagetrace.stages.sizes import by_size
from tests.cases import slow_but
from tests.padded import Bag, padded, texts, widths

EXAMPLES = 300


def bound(data):
    torch.manual_seed(0)
    stage = Stage("texts", model=Bag().double(), objective=Classification(), data=data, collate=padded)
    return Chain(stage)["texts"]


def mean_of(operator) -> MeanCurvature:
    assert isinstance(operator, SumOperator)
    assert isinstance(operator.left, MeanCurvature)
    return operator.left


LENGTHS = [1 + (7 * place) % 40 for place in range(EXAMPLES)]


@pytest.mark.parametrize("choice", slow_but([Hessian, GaussNewton], Hessian))
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
