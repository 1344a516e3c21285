"""Embeddings under two stages: whatever an optimiser wants of them, scores are those of the plain function."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stagetrace import Chain, Direct, Frozen, Lanczos, Query, Stage, trace
from stagetrace.objectives import Classification
from stagetrace.solvers import Shift
from stagetrace.stages.bound import BoundStage
from stagetrace.tracing import contract
from stagetrace.tracing.contract import forward_mode, one_by_one, per_example

ROWS, WIDTH, DECAY = 7, 2, 0.3
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sparse": {"sparse": True},
    "padding": {"padding_idx": 0},
    "sparse padding": {"sparse": True, "padding_idx": 2},
    "scaled": {"scale_grad_by_freq": True},
}


class Bag(nn.Module):
    """The mean of some rows, bent, and a linear head; the padding counts like any row."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.vectors = nn.Embedding(ROWS, WIDTH, **options)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(torch.tanh(self.vectors(words)).mean(dim=1))


def data(seed: int, count: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, ROWS - 1, (count, 3), generator=generator)  # the last row is touched by none
    return TensorDataset(words, torch.randint(0, 2, (count,), generator=generator))


def chain_of(**options: Any) -> tuple[Chain, Query]:
    torch.manual_seed(3)
    first, second = Bag(**options).double(), Bag(**options).double()
    with torch.no_grad():
        for p in first.vectors.parameters():
            p.normal_()  # the padding row too
        second.vectors.load_state_dict(first.vectors.state_dict())
    common: Any = {"objective": Classification(), "weight_decay": DECAY}
    return Chain(
        Stage("pretrain", model=first, data=data(0, 12), **common),
        Stage("finetune", model=second, data=data(1, 9), link=Frozen("vectors"), **common),
    ), Query(data(2, 5))


def losses(vectors: Tensor, head: Tensor, rows: TensorDataset, padding: int | None) -> Tensor:
    """By one-hot products, the padding row held fast by hand; head is `[2 * width + 2]`, weight then bias."""
    words, labels = rows.tensors
    if padding is not None:
        keep = torch.ones(ROWS, 1, dtype=vectors.dtype)
        keep[padding] = 0
        vectors = keep * vectors + (1 - keep) * vectors.detach()
    mean = torch.tanh(F.one_hot(words, ROWS).to(vectors) @ vectors).mean(dim=1)
    logits = mean @ head[: 2 * WIDTH].view(2, WIDTH).T + head[2 * WIDTH :]
    return -torch.log_softmax(logits, dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)


def expected(chain: Chain, query: Query, padding: int | None) -> Tensor:
    """Scores of the pretraining examples by dense matrices: Chen et al. (2020), eq. 11."""
    size = ROWS * WIDTH

    def flat(stage: str) -> tuple[Tensor, Tensor]:
        model = chain[stage].stage.model
        return (
            model.get_parameter("vectors.weight").detach(),
            torch.cat([p.detach().flatten() for p in model.get_submodule("head").parameters()]),
        )

    def mean(rows: Any) -> Any:
        return lambda w, u: losses(w.view(ROWS, WIDTH), u, rows, padding).mean()

    W, U = flat("pretrain")
    _, V = flat("finetune")
    w = W.flatten()
    old, new, asked = chain["pretrain"].stage.data, chain["finetune"].stage.data, query.data
    hessian: Any = torch.autograd.functional.hessian
    jacobian: Any = torch.autograd.functional.jacobian
    (_, mixed), (_, lower) = hessian(mean(new), (w, V))
    q_w, q_v = jacobian(mean(asked), (w, V))
    g = q_w - mixed @ torch.linalg.solve(lower + DECAY * torch.eye(len(V)).double(), q_v)
    H = hessian(lambda x: mean(old)(x[:size], x[size:]), torch.cat([w, U]))
    each = jacobian(lambda x: losses(x[:size].view(ROWS, WIDTH), x[size:], old, padding), torch.cat([w, U]))
    adjoint = torch.linalg.solve(H + DECAY * torch.eye(len(H)).double(), torch.cat([g, torch.zeros_like(U)]))
    return -each @ adjoint


@pytest.mark.parametrize("solver", [Direct(), Lanczos(damping=0.0, filter=Shift, rtol=1e-10)], ids=["dense", "Krylov"])
@pytest.mark.parametrize("name", OPTIONS)
def test_scores_over_two_stages_against_one_hot_products(name: str, solver: Any) -> None:
    chain, query = chain_of(**OPTIONS[name])
    scores = trace(chain, query, solver=solver)["pretrain"].values
    torch.testing.assert_close(scores, expected(chain, query, OPTIONS[name].get("padding_idx")), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("columns", [1, 3])
def test_every_way_to_contract_agrees_along_any_direction(name: str, columns: int) -> None:
    """Also along the padding row, where an adjoint has something as soon as a later stage uses that row."""
    chain, _ = chain_of(**OPTIONS[name])
    risk = chain["pretrain"].risk
    batch = next(iter(risk.read([range(12)])))
    along = torch.randn(risk.trained.size, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    found = [way(risk, batch, along)[1] for way in (forward_mode, per_example, one_by_one)]
    model = chain["pretrain"].stage.model
    head = torch.cat([p.detach().flatten() for p in model.get_submodule("head").parameters()])
    point = torch.cat([model.get_parameter("vectors.weight").detach().flatten(), head])
    size = ROWS * WIDTH
    jacobian: Any = torch.autograd.functional.jacobian(
        lambda x: losses(
            x[:size].view(ROWS, WIDTH), x[size:], chain["pretrain"].stage.data, OPTIONS[name].get("padding_idx")
        ),
        point,
    )
    for dots in found:
        torch.testing.assert_close(dots, jacobian @ along)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_users_embedding_keeps_its_options(name: str) -> None:
    """The copy is what changes."""
    model = Bag(**OPTIONS[name])
    stage = Stage("pretrain", model=model, objective=Classification(), data=data(0, 4))
    assert BoundStage.of(stage, None).risk is not None
    assert stage.evaluated is not model
    for option, value in OPTIONS[name].items():
        assert getattr(model.vectors, option) == value
    assert not model.vectors._forward_hooks


@pytest.mark.parametrize("columns", [1, 3])
def test_tangents_with_storage_of_their_own_give_the_same(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for large tables, where several adjoints go through the model one after the other."""
    monkeypatch.setattr(contract, "COPIED_AT_ONCE", 0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(6, 2)).double()
    data = TensorDataset(torch.randint(0, 7, (5, 2)), torch.randint(0, 2, (5,)))
    risk = BoundStage.of(Stage("s", model=model, objective=Classification(), data=data), None).risk
    batch = next(iter(risk.read([range(5)])))
    adjoints = torch.randn(risk.trained.size, columns, dtype=torch.float64)
    along = contract.directions(risk.trained, adjoints)
    assert along is not None
    assert all(t.untyped_storage().nbytes() == t.numel() * 8 for one in along for t in one.values())
    rows = []
    for i in range(5):
        loss = nn.functional.cross_entropy(model(data[i][0][None]), data[i][1][None])
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))]))
    torch.testing.assert_close(contract.forward_mode(risk, batch, adjoints, along)[1], torch.stack(rows) @ adjoints)
