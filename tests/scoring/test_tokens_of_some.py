"""Tokens of some examples, scored after a trace: the same scores as where tokens were scored along with it."""

from typing import Any

import pytest
import torch

from stagetrace import Chain, EarlyStopping, GaussNewton, Lanczos, Query, Shift, Stage, hf, trace
from stagetrace.errors import DataError
from stagetrace.objectives import NextToken
from stagetrace.solvers.early_stopping import Segment
from stagetrace.tracing.token_some import tokens_of
from tests.hf import tiny
from tests.scoring.test_tokens import SENTENCES, Bigrams

SOLVE: dict[str, Any] = {"curvature": GaussNewton(), "solver": Lanczos(damping=0.1, filter=Shift, rtol=1e-9)}


def test_tokens_of_some_are_those_of_a_trace_that_scored_all():
    model = tiny.model("GPT2LMHeadModel").double()
    stage = hf.stage("only", model, tiny.rows(), tokenizer=tiny.tokenizer(marks=False), batch_size=3)
    chain = Chain(stage)
    found = trace(chain, hf.query(tiny.rows()[:2], stage=stage), tokens=True, **SOLVE)
    some = tokens_of(chain["only"], SOLVE["solver"], found.solutions["only"].value, [5, 0, 5, 2])
    assert list(some) == [0, 2, 5]
    for index, own in some.items():
        expected = found.tokens["only"][index]
        assert (own.index, own.positions.tolist()) == (index, expected.positions.tolist())
        assert own.tokens.tolist() == expected.tokens.tolist()
        torch.testing.assert_close(own.values, expected.values, rtol=1e-6, atol=1e-9)
        assert float(own.total) == pytest.approx(float(found["only"].values[index]), rel=1e-5)
    assert tokens_of(chain["only"], SOLVE["solver"], found.solutions["only"].value, []) == {}


def test_of_a_training_in_segments_they_are_sums_over_these():
    model = Bigrams()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.table.copy_(torch.randn(4, 4, generator=generator).double())
    before = torch.randn(16, generator=generator).double()
    chain = Chain(Stage("fit", model=model, objective=NextToken(), data=SENTENCES, batch_size=2))
    solver = EarlyStopping(1.5, earlier=(Segment(0.7, before),))
    found = trace(chain, Query([torch.tensor([2, 0, 1])]), curvature=GaussNewton(), solver=solver, tokens=True)
    some = tokens_of(chain["fit"], solver, found.solutions["fit"].value, range(5))
    alone = tokens_of(chain["fit"], EarlyStopping(1.5), found.solutions["fit"].value[16:], range(5))
    for index in range(5):
        torch.testing.assert_close(some[index].values, found.tokens["fit"][index].values, rtol=1e-6, atol=1e-9)
        assert not torch.allclose(alone[index].values, some[index].values, rtol=1e-3)


def test_a_score_that_is_not_finite_is_refused():
    chain = Chain(Stage("fit", model=Bigrams(), objective=NextToken(), data=SENTENCES))
    with pytest.raises(DataError, match="the score of example 3 is nan"):
        tokens_of(chain["fit"], Lanczos(), torch.full((16, 1), torch.nan).double(), [3])
