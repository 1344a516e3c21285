"""Matrix products in bfloat16: against the rounding written out, and against dense derivatives in float64."""

import copy
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.utils.data import TensorDataset

from stagetrace import CG, Chain, Frozen, GaussNewton, Hessian, Query, Stage, trace
from stagetrace.checks import verify_stage
from stagetrace.checks.finding import Level
from stagetrace.cli.target import load
from stagetrace.curvature.chunk import hessian_linearised, hessian_retained_graph
from stagetrace.curvature.gauss_newton import (
    gauss_newton_by_reverse,
    gauss_newton_linearised,
    gauss_newton_retained_graph,
)
from stagetrace.curvature.mixed import coupling_of
from stagetrace.errors import ConvergenceWarning, DescriptionError, ResultsError, StagetraceWarning
from stagetrace.objectives import Classification, NextToken, Regression
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.gradient import batch_gradient
from stagetrace.stages.precision import products_in
from stagetrace.taps import tap
from stagetrace.taps.contraction import Contraction
from stagetrace.tracing.contract import forward_mode, per_example

N = 6
X = torch.randn(N, 5, generator=torch.Generator().manual_seed(1))
Y = torch.arange(N) % 3
DATA = TensorDataset(X, Y)

ROUNDED = 2e-4, 2e-2
"""How far rounded numbers are from exact ones, relatively: not nearer, or nothing was rounded, and not farther."""


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def stage(model: nn.Module | None = None, **settings: Any) -> Stage:
    settings = {"objective": Classification(), "data": DATA, "precision": "bf16", **settings}
    return Stage("only", model=model or net(), **settings)


def rounded(t: Tensor) -> Tensor:
    return t.bfloat16().float()


def apart(found: Tensor, right: Tensor) -> float:
    assert found.dtype == torch.float32
    return float((found.double() - right).norm() / right.norm())


def near(found: Tensor, right: Tensor) -> bool:
    return ROUNDED[0] < apart(found, right) < ROUNDED[1]


def test_a_product_and_its_derivatives_round_what_they_are_given():
    y = torch.randn(N, 2, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    line = nn.Linear(5, 2, bias=False)
    bound = BoundStage.of(stage(line, objective=Regression(), data=TensorDataset(X, y)), None)
    (batch,) = bound.risk.read([range(N)])
    outputs = rounded(rounded(X) @ rounded(line.weight.detach()).T)
    torch.testing.assert_close(
        bound.risk.outputs(bound.trained_values, {}, batch), outputs, rtol=1e-2, atol=1e-6
    )  # the last digit of a result is rounded by whoever adds up
    slope = rounded(outputs - y)  # of the mean over two outputs of the square: 2 (z - y) / 2
    gradient = batch_gradient(bound.risk, batch).trained.view(2, 5)
    torch.testing.assert_close(gradient, rounded(slope.T @ rounded(X)), rtol=1e-2, atol=1e-2)
    assert not torch.allclose(gradient, (outputs - y).T @ X, rtol=1e-5, atol=1e-5)


def test_every_derivative_is_near_the_dense_one_in_float64():
    model = net()
    exact, names = copy.deepcopy(model).double(), [name for name, _ in model.named_parameters()]

    def each(vector: Tensor) -> Tensor:
        parts = vector.split([p.numel() for p in exact.parameters()])
        values = {n: v.view_as(p) for (n, p), v in zip(exact.named_parameters(), parts, strict=True)}
        return F.cross_entropy(functional_call(exact, values, (X.double(),)), Y, reduction="none")

    point = torch.cat([p.detach().reshape(-1) for p in exact.parameters()])
    jacobian = torch.func.jacrev(each)(point)
    H = cast(Tensor, hessian(lambda v: each(v).sum())(point))
    bound = BoundStage.of(stage(model), None)
    assert list(bound.trained.names) == names
    (batch,) = bound.risk.read([range(N)])
    v = torch.randn(len(point), 2, generator=torch.Generator().manual_seed(3))
    assert near(batch_gradient(bound.risk, batch).trained[:, 0], jacobian.sum(0))
    for way in (hessian_retained_graph, hessian_linearised):
        assert near(way(bound.risk, batch)(v), H @ v.double())
    right = gauss_newton_retained_graph(bound.risk.exact, batch)(v).double()
    for way in (gauss_newton_retained_graph, gauss_newton_by_reverse, gauss_newton_linearised):
        assert near(way(bound.risk, batch)(v), right)
    dots = jacobian @ v.double()
    for contract in (forward_mode, per_example, lambda *_: Contraction(tap(bound.risk), v)(batch)):
        assert near(contract(bound.risk, batch, v)[1], dots)
    head = Stage("head", model=model, objective=Classification(), data=DATA, link=Frozen({"0": "0"}), precision="bf16")
    second = Chain(stage(model, precision=None), head)["head"]
    along = {
        name: v[-15:, 0].split((12, 3))[place].view_as(p)
        for place, (name, p) in enumerate(second.trained_values.items())
    }
    found = coupling_of(second.risk, batch, along)
    assert near(second.inherited.flatten(found), H[:24, 24:] @ v[-15:, 0].double())


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("mask", ["none", "causal", "bool", "float"])
def test_attention_written_out_is_pytorchs(mask: str, grouped: bool):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 7, 8, generator=generator) for _ in range(3))
    if grouped:
        k, v = k[:, :2], v[:, :2]
    seen = torch.rand(2, 1, 7, 7, generator=generator) > 0.4
    seen[0, :, 3] = False  # a query that may see nothing
    masks = {"bool": seen, "float": torch.zeros(2, 1, 7, 7).masked_fill(~seen, float("-inf"))}
    settings: Any = {"attn_mask": masks.get(mask), "is_causal": mask == "causal", "enable_gqa": grouped}
    with products_in("bf16", q.device):
        found = F.scaled_dot_product_attention(q, k, v, **settings)
    assert near(
        found,
        F.scaled_dot_product_attention(
            q.double(),
            k.double(),
            v.double(),
            **(settings | {"attn_mask": masks["float"].double() if mask == "float" else masks.get(mask)}),
        ),
    )


def test_what_a_model_keeps_exact_stays_exact():
    class Angles(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                places = torch.arange(300.0).view(-1, 1) @ torch.ones(1, 1)
            return self.line(x[:, :1]) + places[-1]

    bound = BoundStage.of(stage(Angles(), objective=Regression(), data=TensorDataset(X, X[:, :1])), None)
    (batch,) = bound.risk.read([range(N)])
    gap = bound.risk.outputs(bound.trained_values, {}, batch) - bound.risk.exact.outputs(
        bound.trained_values, {}, batch
    )
    assert 0 < float(gap.abs().max()) < 0.02  # 299 is no number of eight digits in base two


def test_its_error_is_measured_and_a_finer_residual_is_warned_of(tmp_path: Path):
    query = Query(DATA)
    fine = pytest.warns(StagetraceWarning, match=r"products in bf16 are off by .*; type rtol=")
    with pytest.warns(ConvergenceWarning), fine:
        found = trace(Chain(stage()), query, curvature=GaussNewton(), solver=CG(damping=0.1, rtol=1e-5), out=tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())["statistics"]
    (measured,) = [c for c in record["checks"] if c["what"] == "products in bf16" and c["where"] == "only"]
    assert measured["level"] == "OK"
    assert "100% of the multiply-adds" in measured["text"]
    assert ROUNDED[0] < record["solving"]["only"]["product error"] < ROUNDED[1]
    assert record["solving"]["only"]["precision"] == "bf16"
    exact = trace(Chain(stage(precision=None)), query, curvature=GaussNewton(), solver=CG(damping=0.1, rtol=1e-2))
    assert near(found["only"].values.float(), exact["only"].values)
    with pytest.raises(ResultsError, match="precision"):
        trace(Chain(stage(precision=None)), query, curvature=GaussNewton(), solver=CG(damping=0.1), out=tmp_path)


def test_positions_of_a_language_model_are_not_rounded():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=30, num_key_value_heads=1, max_position_embeddings=400, **shape)
    ids = torch.randint(30, (1, 300), generator=torch.Generator().manual_seed(0))  # those above 256 need 9 bits
    data = [{"input_ids": row, "labels": row} for row in ids]
    model = transformers.LlamaForCausalLM(config)
    risk = BoundStage.of(stage(model, objective=NextToken(), data=data), None).risk
    (batch,) = risk.read([[0]])
    assert near(batch_gradient(risk, batch).trained, batch_gradient(risk.exact, batch).trained.double())


def test_a_wrong_second_derivative_does_not_hide_behind_rounding():
    class Off(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.tanh()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            y = x.detach().tanh()  # as a constant: its first derivative is right
            return grads[0] * (1 - y * y)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(Off.apply(self.first(x)))

    findings = verify_stage(BoundStage.of(stage(Net()), None))
    assert [f.what for f in findings if f.level is Level.WARNING] == ["second derivative"]


def test_where_it_cannot_be_it_is_refused():
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(5))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.w)[:, :3]

    with pytest.raises(DescriptionError, match=r"precision must be 'bf16' .*got 'fp8'"):
        stage(precision="fp8")
    with pytest.raises(DescriptionError, match=r"rounds the products of float32 parameters, got float64"):
        Chain(stage(net().double()))
    with pytest.raises(DescriptionError, match="the model has none to round"):
        verify_stage(BoundStage.of(stage(Plain()), None))
    assert Hessian().operator(BoundStage.of(stage(), None)).rounding > 1e-3


def test_the_command_line_chooses_it_for_all_stages_or_for_one(tmp_path: Path):
    (tmp_path / "precise.py").write_text(
        "import torch\n"
        "from stagetrace import Chain, Frozen, Query, Stage\n"
        "from stagetrace.objectives import Regression\n"
        "def job():\n"
        "    data, model = [(torch.ones(2), torch.ones(1))], torch.nn.Linear(2, 1)\n"
        "    one = Stage('one', model=model, objective=Regression(), data=data)\n"
        "    two = Stage('two', model=model, objective=Regression(), data=data, link=Frozen('weight'))\n"
        "    return Chain(one, two), Query(data)\n"
    )
    target = f"{tmp_path / 'precise.py'}:job"
    for typed, chosen in (([], [None, None]), (["bf16"], ["bf16", "bf16"]), (["two=bf16"], [None, "bf16"])):
        assert [bound.stage.precision for bound in load(target, typed).chain] == chosen
    with pytest.raises(DescriptionError, match="--precision: no stage is called 'three'"):
        load(target, ["three=bf16"])
