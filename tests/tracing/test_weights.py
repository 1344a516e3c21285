"""Weights of the examples and a weight decay by names: against stages really solved again, and against copies."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev
from torch.utils.data import TensorDataset

from stagetrace import EKFAC, Chain, Direct, Frozen, GaussNewton, Hessian, Identity, Lanczos, Query, Shift, Stage, trace
from stagetrace.errors import StagetraceError
from stagetrace.objectives import Classification, Regression, Weights
from stagetrace.stages.fingerprint import fingerprint_stage
from stagetrace.taps import tap
from stagetrace.tracing.contract import contraction
from stagetrace.validation.resolving import resolve

WEIGHTS = ([3, 1, 0, 2, 1, 1, 2, 2], [2, 1, 0, 1, 4, 2])
"""Whole numbers, so that copies of the examples stand for them: two stages of eight and six examples."""

DECAY = {"*bias": 0.05, "body.weight": 0.01, "*": 0.02}
DECAYS = {"body.weight": 0.01, "body.bias": 0.05, "head.weight": 0.02, "head.bias": 0.05}


def points(size: int, seed: int) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, dtype=torch.float64, generator=drawn)
    return x, torch.randint(3, (size,), generator=drawn)


DATA = (points(8, 1), points(6, 2))
ASKED = points(3, 3)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 2), nn.Linear(2, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh())


def losses(point: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropies by hand."""
    hidden = (x @ point["body.weight"].mT + point["body.bias"]).tanh()
    logits = hidden @ point["head.weight"].mT + point["head.bias"]
    return logits.logsumexp(1) - logits.gather(1, y.unsqueeze(1)).squeeze(1)


def minimum(
    stage: int, weights: Tensor, before: Mapping[str, Tensor] | None, start: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Newton's method on `(1/n) sum_i w_i loss_i + sum_j d_j / 2 v_j^2`; the second stage's body is kept."""
    torch.manual_seed(stage)
    start = start or {name: p.detach().clone() for name, p in Net().named_parameters()}
    kept = {} if before is None else {name: before[name] for name in start if name.startswith("body")}
    point = {name: p for name, p in start.items() if name not in kept}

    def objective(flat: Tensor) -> Tensor:
        sizes = [p.numel() for p in point.values()]
        own = {n: v.reshape(p.shape) for (n, p), v in zip(point.items(), flat.split(sizes), strict=True)}
        penalty = sum(DECAYS[name] / 2 * value.square().sum() for name, value in own.items())
        return weights @ losses({**kept, **own}, *DATA[stage]) / len(weights) + penalty

    flat = torch.cat([p.flatten() for p in point.values()])
    for _ in range(300):
        g, H = grad(objective)(flat), hessian(objective)(flat)
        if float(g.norm()) < 1e-11:
            break
        lowest = float(torch.linalg.eigvalsh(H)[0])
        step = torch.linalg.solve(H + max(0.0, 1e-4 - lowest) * torch.eye(len(H), dtype=H.dtype), g)
        length = 1.0
        while float(g.norm()) > 1e-6 and objective(flat - length * step) > objective(flat):
            length /= 2
        flat = flat - length * step
    assert float(grad(objective)(flat).norm()) < 1e-10
    sizes = [p.numel() for p in point.values()]
    return {**kept, **{n: v.reshape(p.shape) for (n, p), v in zip(point.items(), flat.split(sizes), strict=True)}}


def scaled(stage: int) -> Tensor:
    """The weights over their mean, by hand."""
    weights = torch.tensor(WEIGHTS[stage], dtype=torch.float64)
    return weights * len(weights) / sum(WEIGHTS[stage])


@cache
def solved() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    first = minimum(0, scaled(0), None)
    return first, minimum(1, scaled(1), first)


def net(values: Mapping[str, Tensor]) -> Net:
    model = Net()
    model.load_state_dict(values)
    return model


def chain(weights: Sequence[Any], order: Sequence[Sequence[int]] = (range(8), range(6))) -> Chain:
    """Both stages at their minimum; order: the examples of each, which may be copies."""
    first, second = solved()
    data = [TensorDataset(x[list(which)], y[list(which)]) for (x, y), which in zip(DATA, order, strict=True)]
    settings: dict[str, Any] = {"objective": Classification(), "batch_size": 3}
    return Chain(
        Stage("one", model=net(first), data=data[0], weights=weights[0], weight_decay=DECAY, **settings),
        Stage(
            "two",
            model=net(second),
            data=data[1],
            weights=weights[1],
            weight_decay={"head.weight": 0.02, "*": 0.05},
            link=Frozen("body"),
            **settings,
        ),
    )


def copies() -> list[list[int]]:
    return [[i for i, w in enumerate(each) for _ in range(w)] for each in WEIGHTS]


QUERY = Query(TensorDataset(*ASKED))


def test_scores_are_those_of_stages_really_solved_again() -> None:
    result = trace(chain(WEIGHTS), QUERY, curvature=Hessian(), solver=Direct(damping=0.0))

    def asked(stage: int, index: int, epsilon: float) -> float:
        weights = [scaled(0), scaled(1)]
        weights[stage] = weights[stage].clone()
        weights[stage][index] *= 1 + epsilon * len(weights[stage])  # F + epsilon w_i loss_i
        first = minimum(0, weights[0], None, solved()[0])
        return float(losses(minimum(1, weights[1], first, solved()[1]), *ASKED).mean())

    for stage, name, index in ((0, "one", 0), (0, "one", 4), (1, "two", 4), (1, "two", 3)):
        slope = (asked(stage, index, 1e-4) - asked(stage, index, -1e-4)) / 2e-4
        assert float(result[name].values[index]) == pytest.approx(slope, rel=1e-5)
    assert float(result["one"].values[2]) == 0 == float(result["two"].values[2])


CURVATURES = {
    "hessian": (Hessian(), Direct(damping=0.01)),
    "gauss-newton": (GaussNewton(), Lanczos(damping=0.01)),
    "sample space": (GaussNewton(), Direct(0.01, Shift)),
    "ekfac": (EKFAC(), Direct(0.01, Shift)),
    "identity": (Identity(), Lanczos(damping=0.0)),
}


@pytest.mark.parametrize("name", CURVATURES)
def test_a_weight_of_two_is_two_copies(name: str) -> None:
    curvature, solver = CURVATURES[name]
    weighed = trace(chain(WEIGHTS), QUERY, curvature=curvature, solver=solver)
    copied = trace(chain((None, None), copies()), QUERY, curvature=curvature, solver=solver)
    for stage, which in zip(("one", "two"), copies(), strict=True):
        together = torch.zeros(len(weighed[stage].values), dtype=torch.float64)
        together.index_add_(0, torch.tensor(which), copied[stage].removal_effect)
        assert torch.allclose(weighed[stage].removal_effect, together, rtol=1e-7, atol=1e-12)


def test_curvature_and_penalty_are_those_of_dense_matrices() -> None:
    bound = chain(WEIGHTS)["one"]
    values = bound.trained_values

    def objective(flat: Tensor) -> Tensor:
        own = bound.trained.unflatten(flat)
        penalty = sum(DECAYS[name] / 2 * value.square().sum() for name, value in own.items())
        return scaled(0) @ losses(own, *DATA[0]) / 8 + penalty

    flat = bound.trained.flatten(values)
    eye = torch.eye(bound.trained.size, dtype=torch.float64)
    assert torch.allclose(Hessian().operator(bound).apply(eye), hessian(objective)(flat), atol=1e-12)
    model = net(values)
    jacobian = jacrev(lambda v: functional_call(model, bound.trained.unflatten(v), (DATA[0][0],)))(flat)
    p = model(DATA[0][0]).detach().softmax(1)
    inner = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    dense = torch.einsum("n,nap,nab,nbq->pq", scaled(0) / 8, jacobian, inner, jacobian) + torch.diag(bound.decay)
    assert torch.allclose(GaussNewton().operator(bound).apply(eye), dense, atol=1e-12)
    assert float(bound.stationarity.norm()) < 1e-9


@pytest.mark.parametrize("way", ["forward mode", "layer by layer", "per-example gradients", "one example at a time"])
def test_every_way_to_score_has_the_weights(way: Any) -> None:
    weighed, plain = (chain(weights)["one"].risk for weights in (WEIGHTS, (None, None)))
    along = torch.randn(weighed.trained.size, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch = next(iter(weighed.read([[5, 0, 3]])))
    taps = [tap(risk) if way == "layer by layer" else None for risk in (weighed, plain)]
    got = [contraction(way, risk, along, tapped)(batch) for risk, tapped in zip((weighed, plain), taps, strict=True)]
    factors = scaled(0)[[5, 0, 3]]
    assert torch.allclose(got[0][0], factors * got[1][0])
    assert torch.allclose(got[0][1], factors.unsqueeze(1) * got[1][1], atol=1e-12)


def test_solving_again_predicts_a_removal_and_uses_the_weights() -> None:
    whole = chain(WEIGHTS)
    left_out = torch.ones(8, dtype=torch.float64)
    left_out[0] = 0
    weights = scaled(0).clone()
    weights[0] = 0
    again = resolve(whole, "one", left_out)
    first = minimum(0, weights, None, solved()[0])
    expected = losses(minimum(1, scaled(1), first, solved()[1]), *ASKED).mean()
    assert float(QUERY.loss(again.chain.last)) == pytest.approx(float(expected), rel=1e-7)


def test_what_identifies_a_stage_has_the_weights() -> None:
    given = (WEIGHTS, (WEIGHTS[0], None), ([1] * 8, None), (None, None))
    told = [fingerprint_stage(chain(weights)["one"]) for weights in given]
    assert told[0] == told[1] != told[2]
    assert "weights" not in told[3]


def test_weights_are_checked() -> None:
    model = nn.Linear(2, 1)
    data = TensorDataset(torch.ones(3, 2), torch.zeros(3, 1))

    def stage(weights: Any = None, weight_decay: Any = 0.0) -> Stage:
        return Stage("s", model=model, objective=Regression(), data=data, weights=weights, weight_decay=weight_decay)

    for weights, said in (
        ([1, 2], "one number for each of the 3 examples, got 2"),
        ([1, -1, 2], "example 1 has the weight -1"),
        ([1, float("nan"), 2], "example 1 has the weight nan"),
        ([0, 0, 0], "all weights are 0"),
        (["a", "b", "c"], "the weight of example 0 must be a number"),
        ("weight", "names a column"),
        ({"web": 1.0}, "Weights({...}, sources=...)"),
        (2.0, "must be a sequence"),
        (lambda: Weights({}), "Weights has no weight: the mapping is empty"),
        (lambda: Weights({}, sources=["web"] * 3), "Weights has no weight: the mapping is empty"),
        (Weights({"web": 1.0}, sources=["web", "code", "web"]), "example 1 is of the source 'code'"),
        (Weights({"web": 1.0, "code": 1.0}, sources=["web"] * 3), "no example is of the source 'code'"),
    ):
        with pytest.raises(StagetraceError, match=said.replace("(", r"\(").replace(")", r"\)").replace("{...}", ".*")):
            stage(weights() if callable(weights) else weights)
    given = stage(Weights([2, 4, 6], scaled=False)).example_weights
    assert given is not None
    assert given.tolist() == [2, 4, 6]
    assert stage(Weights({0: 1, 1: 4}, sources=torch.tensor([0, 1, 0]))).example_weights.tolist() == [0.5, 2.0, 0.5]

    for decay, said in (
        ({"bais": 0.1, "*": 0.0}, "no parameter is called like 'bais'"),
        ({"weight": -0.1}, "must be a number of at least 0"),
        ({}, "an empty mapping"),
    ):
        with pytest.raises(StagetraceError, match=said):
            stage(weight_decay=decay)
    with pytest.raises(StagetraceError, match="no pattern matches the trained parameter 'bias'"):
        stage(weight_decay={"weight": 0.1})
    with pytest.raises(StagetraceError, match=r"'weight' is matched by '.eight' .0.1. and 'w.' .0.2."):
        stage(weight_decay={"?eight": 0.1, "w*": 0.2, "*": 0.0})
    kept = Stage("s", model=model, objective=Regression(), data=data, weight_decay={"bias": 0.1}, link=Frozen("weight"))
    assert kept.weight_decay == {"bias": 0.1}, "what the link kept needs none"
