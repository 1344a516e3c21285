"""Gradients of all queries at once, and rankings without the matrix of scores."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stagetrace import Chain, Direct, Frozen, Lanczos, Query, Scores, Shift, Stage, trace
from stagetrace.errors import DataError, DescriptionError
from stagetrace.objectives import Classification, Regression
from stagetrace.results.parts import Part, join, split
from stagetrace.results.ranking import ranked
from stagetrace.stages import gradient as gradients
from stagetrace.stages.gradient import batch_gradient, each_gradient, trained_gradient
from stagetrace.stages.risk import Risk
from stagetrace.tracing import rank
from tests.curvature.specimens import BACKWARDS, BAG, CONVOLUTIONAL, ENCODER, GRU, MLP, TIED, Specimen


def one_by_one(risk: Risk) -> Tensor:
    found = [batch_gradient(risk, batch) for batch in risk.read([[i] for i in range(len(risk.examples))])]
    return torch.cat([torch.cat([each.trained, each.inherited]) for each in found], dim=1)


@pytest.mark.parametrize("specimen", [MLP, CONVOLUTIONAL, ENCODER, GRU, TIED, BAG, BACKWARDS], ids=lambda s: s.name)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_at_once_are_those_one_by_one(
    specimen: Specimen, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gradients, "FEW", 1)
    risk = specimen.risk(dtype)
    found = each_gradient(risk)
    truth = one_by_one(risk)
    assert found.trained.shape == (risk.trained.size, 7)
    gap = float((torch.cat([found.trained, found.inherited]) - truth).abs().max())
    assert gap <= 100 * torch.finfo(dtype).eps * float(truth.abs().max())
    assert (gradients._together(risk) == 1) == (specimen in (GRU, BACKWARDS))


def chain_of_two(examples: int = 30) -> Chain:
    """A classifier's trunk, kept by a second stage with a head of its own."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(examples, 4, generator=generator), torch.randint(0, 3, (examples,), generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        trunk, heads = nn.Linear(4, 5), [nn.Linear(5, 3) for _ in range(2)]

    first = Stage("first", model=Net(trunk, heads[0]), objective=Classification(), data=TensorDataset(x, y))
    kept = Net(trunk, heads[1])
    kept.trunk.requires_grad_(False)
    return Chain(
        first,
        Stage("second", model=kept, objective=Classification(), data=TensorDataset(x, y), link=Frozen("trunk")),
    )


class Net(nn.Module):
    def __init__(self, trunk: nn.Linear, head: nn.Linear) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(4, 5), head
        self.trunk.load_state_dict(trunk.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.trunk(x)))


def test_inherited_parameters_have_their_gradients_too(monkeypatch: pytest.MonkeyPatch):
    chain = chain_of_two()
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    risk = Query(TensorDataset(x, torch.zeros(40).long()), reduction="none", batch_size=7).risk(chain.last)
    assert risk.inherited.size == 25
    for bytes_, together in ((gradients.GRADIENT_BYTES, 7), (4 * 43 * 3, 3)):
        monkeypatch.setattr(gradients, "GRADIENT_BYTES", bytes_)
        assert gradients._together(risk) == together
        found = each_gradient(risk)
        assert torch.allclose(torch.cat([found.trained, found.inherited]), one_by_one(risk), rtol=1e-4, atol=1e-7)


def test_a_query_that_is_not_finite_is_named_among_many():
    x = torch.randn(40, 3)
    x[23, 1] = float("nan")
    model = nn.Linear(3, 1)
    bound = Chain(Stage("a", model=model, objective=Regression(), data=TensorDataset(x[:5], torch.zeros(5, 1)))).last
    risk = Query(TensorDataset(x, torch.zeros(40, 1)), reduction="none").risk(bound)
    with pytest.raises(DataError, match="example 23"):
        each_gradient(risk)


def test_a_gradient_in_the_trained_parameters_alone():
    risk = Query(TensorDataset(torch.ones(2, 4), torch.zeros(2).long())).risk(chain_of_two().last)
    batch = next(iter(risk.read([[0, 1]])))
    loss, found = trained_gradient(risk, batch)
    assert torch.allclose(found, batch_gradient(risk, batch).trained[:, 0])
    losses = risk.losses(risk.trained_values, risk.inherited_values, batch)
    assert torch.allclose(loss, losses.sum())


# Rankings


def queries(number: int = 12) -> Query:
    x = torch.randn(number, 4, generator=torch.Generator().manual_seed(3))
    return Query(TensorDataset(x, torch.arange(number) % 3), reduction="none")


def test_a_ranking_holds_the_ends_of_the_matrix():
    chain, solver = chain_of_two(), Direct(0.1, Shift)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = trace(chain, queries(), solver=solver)
        found = rank(chain, queries(), top=7, solver=solver)
    assert list(found) == ["first", "second"]
    for stage, ranking in found.items():
        values = whole[stage].values
        assert values.dtype == torch.float32
        for indices, scores, flag in (
            (ranking.harmful, ranking.harmful_scores, True),
            (ranking.helpful, ranking.helpful_scores, False),
        ):
            order = values.sort(dim=1, descending=flag, stable=True)
            assert torch.equal(indices, order.indices[:, :7])
            assert torch.equal(scores, order.values[:, :7])
            assert ranking.top(3, query=5, harmful=flag).indices == whole[stage].top(3, query=5, harmful=flag).indices
        assert ranking.solution is not None
        assert len(ranking.solution.relative_residuals) == 12
        assert ranking.to_pandas().shape == (2 * 12 * 7, 6)


def test_a_ranking_asks_for_less_and_a_solver_that_is_given_for_what_it_says():
    chain = chain_of_two()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asked: dict[str, Any] = {
            "many": rank(chain, queries(), of="second"),
            "few": rank(chain, queries(3), of="second"),
            "given": rank(chain, queries(), of="second", solver=Lanczos(0.1, 1e-6)),
        }
    tolerances = {name: found["second"].solution.tolerance for name, found in asked.items()}
    assert tolerances == {"many": 0.1, "few": 1e-4, "given": 1e-6}


def test_queries_in_blocks_have_the_same_rankings():
    chain, solver = chain_of_two(), Direct(0.1, Shift)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = rank(chain, queries(), top=4, solver=solver)
        blocks = rank(chain, queries(), top=4, solver=solver, memory=8 * 4 * 43 * 5)  # 5, 5 and 2 queries
    for stage in whole:
        one, other = whole[stage], blocks[stage]
        assert torch.equal(one.harmful, other.harmful)
        assert torch.equal(one.helpful, other.helpful)
        assert torch.allclose(one.harmful_scores, other.harmful_scores, rtol=1e-4)
        assert one.solution is not None
        assert other.solution is not None
        assert len(other.solution.relative_residuals) == 12
        assert other.solution.products == 3 * one.solution.products


@pytest.mark.parametrize("k", [1, 3, 100])
def test_parts_of_any_size_give_the_same_ends(k: int):
    values = torch.randint(-3, 4, (4, 23), generator=torch.Generator().manual_seed(0)).float()
    values += torch.linspace(0, 0.01, 23)  # no two alike
    parts = [Part(start, values[:, start : start + 5].contiguous(), 23) for start in range(0, 23, 5)]
    found = ranked("a", iter(parts), k)
    order = values.sort(dim=1, descending=True)
    assert torch.equal(found.harmful, order.indices[:, :k])
    assert torch.equal(found.helpful, order.indices.flip(1)[:, :k])


def test_what_a_ranking_refuses():
    chain = chain_of_two()
    with pytest.raises(DescriptionError, match="type reduction='none'"):
        rank(chain, Query(TensorDataset(torch.ones(2, 4), torch.zeros(2).long())))
    with pytest.raises(DescriptionError, match=r"rank\(top=\.\.\.\)"):
        rank(chain, queries(), top=0)
    found = ranked("a", [Part(0, torch.eye(3), 3)], 2)
    with pytest.raises(DescriptionError, match="rank again with top=3"):
        found.top(3, query=0)
    with pytest.raises(DescriptionError, match="query 3 does not exist"):
        found.top(1, query=3)


def test_a_matrix_of_single_precision_stays_so():
    scores = Scores("a", torch.randn(3, 5))
    assert scores.removal_effect.dtype == torch.float32
    assert scores.per_example.dtype == torch.float64
    assert torch.equal(join("a", split(scores)).values, scores.values)
    assert scores.top(1, query=2).indices == (int(scores.values[2].argmax()),)
    with pytest.raises(DescriptionError, match="must be float64"):
        Scores("a", torch.randn(5))
