"""The gradient dot product against a loop over parameters."""

import pytest
import torch
from torch.utils.data import TensorDataset

from stagetrace import Chain, Identity, Lanczos, Query
from stagetrace.errors import DescriptionError
from stagetrace.validation.estimators import GradientDot, Influence
from tests.chains import STRONG_TANH, ChainCase, chain_of, each_place, query_of
from tests.oracles import solved
from tests.validation.shared import RENAMED, dots, example_gradients, query_gradients, reduced, shared


@each_place(RENAMED)
def test_gradient_dot_equals_the_loop(case: ChainCase, position: int):
    chain, name = chain_of(case, solved(case)), case.stages[position].name
    if not shared(case, position):
        with pytest.raises(DescriptionError, match=f"gradient dot product: .*'{name}' trained"):
            GradientDot().removal_effects(chain, query_of(case), name)
        return
    examples = example_gradients(case, position, solved(case)[position])
    expected = dots(case, position, query_gradients(case), examples)
    assert expected.abs().max() > 1e-6
    for reduction in ("mean", "sum", "none"):
        found = GradientDot().removal_effects(chain, query_of(case, reduction=reduction), name)
        torch.testing.assert_close(found, reduced(expected, reduction), rtol=1e-9, atol=1e-12)


def test_gradient_dot_of_one_stage_is_identity_curvature():
    case = STRONG_TANH
    chain = Chain(chain_of(case, solved(case)).stages[0])
    query = Query(TensorDataset(case.stages[0].x[:4] + 0.1, case.stages[0].y[:4]))
    found = GradientDot().removal_effects(chain, query, "pretrain")
    expected = Influence(Identity(), Lanczos(damping=0.0)).removal_effects(chain, query, "pretrain")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
