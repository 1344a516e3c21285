"""EK-FAC against dense float64 references that are written out from its definition, and against Gauss-Newton."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from examples.elastic import Elastic
from stagetrace import EKFAC, Chain, Direct, Frozen, GaussNewton, Lanczos, Proximal, Query, Shift, Stage, trace
from stagetrace.curvature.ekfac import operator, stays_diagonal
from stagetrace.curvature.ekfac.factors import Elementwise, FewOutputs, Softmax, factor_of
from stagetrace.errors import DescriptionError, ResultsError
from stagetrace.hf.weights import Smoothed
from stagetrace.objectives import (
    BinaryClassification,
    Classification,
    MaskedToken,
    MultiLabel,
    NextToken,
    Regression,
)
from stagetrace.solvers import Status, direct, solve
from stagetrace.solvers.system import Equation
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk
from tests.curvature.specimens import CONVOLUTIONAL, MLP, SPECIMENS, SQUARED_MLP, TIED, Specimen, dense_gauss_newtons


def dense(specimen: Specimen, **settings: Any) -> Tensor:
    return EKFAC(examples=None, **settings).operator(specimen.bound()).to_dense()


# The definition


def by_definition(inputs: Tensor, slopes: Tensor) -> Tensor:
    """The block of a linear layer with bias: inputs `[n, d]`, output gradients `[n, s, m]` for each factor's column.

    Entries in the order of the parameters: the weight row after row, then the bias.
    """
    n, d = inputs.shape
    a = torch.cat([inputs, torch.ones(n, 1, dtype=inputs.dtype)], dim=1)
    left = torch.linalg.eigh(torch.einsum("nsi,nsj->ij", slopes, slopes))[1]
    right = torch.linalg.eigh(a.T @ a)[1]
    m = slopes.shape[2]
    basis = torch.kron(left, right)  # of matrices [m, d + 1], row after row
    gradients = torch.einsum("nsi,nj->nsij", slopes, a).reshape(-1, m * (d + 1))
    values = (gradients @ basis).square().sum(dim=0) / n
    block = basis @ torch.diag(values) @ basis.T
    order = torch.arange(m * (d + 1)).reshape(m, d + 1)
    places = torch.cat([order[:, :d].reshape(-1), order[:, d]])
    return block[places][:, places]


def test_blocks_of_a_network_are_those_of_the_definition() -> None:
    (x, _), model = MLP.data().tensors, MLP.model()
    assert isinstance(model, nn.Sequential)
    first, last = model[0], model[2]
    x = x.double()
    hidden = first(x).tanh()
    logits = last(hidden)
    p = logits.softmax(dim=1)
    # the expectation over labels: d sqrt(p_c) log p_c with p_c constant, c = 0, 1, 2
    out = p.sqrt().unsqueeze(2) * (torch.eye(3, dtype=p.dtype) - p.unsqueeze(1))
    through = (out @ last.weight) * (1 - hidden.square()).unsqueeze(1)
    expected = torch.block_diag(by_definition(x, through), by_definition(hidden, out)).detach()
    torch.testing.assert_close(dense(MLP, exact=0), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("specimen", SPECIMENS, ids=lambda specimen: specimen.name)
@pytest.mark.parametrize("exact", [0, 16])
def test_the_trace_is_gauss_newton_s(specimen: Specimen, exact: int) -> None:
    found, expected = dense(specimen, exact=exact), dense_gauss_newtons(specimen).mean(dim=0)
    torch.testing.assert_close(found.trace(), expected.trace(), rtol=1e-10, atol=0)
    torch.testing.assert_close(found, found.mT, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("specimen", [CONVOLUTIONAL, TIED], ids=lambda specimen: specimen.name)
def test_exact_blocks_are_gauss_newton_s(specimen: Specimen) -> None:
    found, expected = dense(specimen, exact=10_000), dense_gauss_newtons(specimen).mean(dim=0)
    within = found != 0
    assert 0 < within.sum() < within.numel()
    torch.testing.assert_close(found[within], expected[within], rtol=1e-8, atol=1e-12)


def one_layer(n: int, outputs: int, **changes: Any) -> BoundStage:
    generator = torch.Generator().manual_seed(3)
    data = TensorDataset(torch.randn(n, 4, generator=generator), torch.randn(n, outputs, generator=generator))
    described: dict[str, Any] = {"model": nn.Linear(4, outputs).double(), "objective": Regression(), "data": data}
    return BoundStage.of(Stage("only", **(described | changes)), None)


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_single_layer_and_example_is_exact(outputs: int) -> None:
    bound = one_layer(1, outputs)
    found, expected = (each.operator(bound).to_dense() for each in (EKFAC(exact=0), GaussNewton()))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_inputs_along_the_axes_are_exact() -> None:
    x = torch.diag(torch.tensor([1.0, 2.0, 3.0])).repeat(2, 1)
    model = nn.Linear(3, 2, bias=False).double()
    bound = one_layer(6, 2, model=model, data=TensorDataset(x, torch.zeros(6, 2)))
    found, expected = (each.operator(bound).to_dense() for each in (EKFAC(exact=0), GaussNewton()))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("specimen", [CONVOLUTIONAL, TIED, MLP], ids=lambda specimen: specimen.name)
def test_batches_and_memory_do_not_matter(specimen: Specimen) -> None:
    # one example at a time, every pass made anew, against all in memory
    torch.testing.assert_close(dense(specimen, exact=0, memory=1), dense(specimen, exact=0), rtol=1e-8, atol=1e-12)


# The loss's factor


class Outputs:
    """Free outputs in the model's place: the parameter is the bias."""

    @staticmethod
    def risk(objective: Any, data: Any, shape: tuple[int, ...]) -> tuple[Risk, Batch, Tensor]:
        class Free(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.z = nn.Parameter(torch.zeros(shape, dtype=torch.float64))

            def forward(self, x: Tensor) -> Tensor:
                return self.z.expand(len(x), *shape) + 0 * x.sum()

        stage = Stage("only", model=Free(), objective=objective, data=data)
        risk = BoundStage.of(stage, None).risk
        batch = next(iter(risk.read([range(len(data))])))
        z = torch.randn(len(data), *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return risk, batch, 2 * z


def second_derivatives(risk: Risk, batch: Batch, z: Tensor) -> Tensor:
    """Each example's matrix in its outputs, by autograd: `[n, d, d]`."""
    hessian = torch.func.hessian(lambda flat: risk.reduce(flat.reshape(z.shape), batch).sum())(z.reshape(-1))
    n, d = len(z), z[0].numel()
    blocks = hessian.reshape(n, d, n, d)
    return torch.stack([blocks[i, :, i] for i in range(n)])


def squares(risk: Risk, batch: Batch, z: Tensor, draws: int, seeds: int) -> Tensor:
    """The mean of `sum_s u_s u_s'` over seeds: `[n, d, d]`."""
    factor = factor_of(risk, batch, z)
    total = torch.zeros(len(z), z[0].numel(), z[0].numel(), dtype=z.dtype)
    for seed in range(seeds):
        for column in factor.columns(risk, batch, z, draws, 100 * seed):
            flat = column.flatten(1)
            total += flat.unsqueeze(2) * flat.unsqueeze(1) / seeds
    return total


x4 = torch.zeros(4, 1)
LABELS = torch.tensor([[1, 3, -100, 0, 2], [0, -100, -100, -100, -100], [4, 4, 1, 1, 0], [-100] * 5])
TOKENS = [{"input_ids": row.clamp_min(0), "attention_mask": (row >= 0).long(), "labels": row} for row in LABELS]
EXACT = {
    "classes": (Classification(), TensorDataset(x4, torch.tensor([0, 2, 1, 1])), (3,)),
    "probabilities": (Classification(), TensorDataset(x4, torch.full((4, 3), 1 / 3)), (3,)),
    "squared": (Regression(), TensorDataset(x4, torch.zeros(4, 5)), (5,)),
    "binary": (BinaryClassification(), TensorDataset(x4, torch.tensor([0, 1, 1, 0])), (1,)),
    "several labels": (MultiLabel(), TensorDataset(x4, torch.ones(4, 6)), (6,)),
    "few tokens": (MaskedToken(), TensorDataset(x4, LABELS[:, :2]), (2, 5)),
    "smoothed": (Smoothed(0.1), TensorDataset(x4, torch.tensor([0, 2, 1, 1])), (3,)),
}
DRAWN = {
    "tokens, mean": (MaskedToken(), TensorDataset(x4, LABELS), (5, 7)),
    "tokens, sum": (MaskedToken("sum"), TensorDataset(x4, LABELS), (5, 7)),
    "many classes": (Classification(), TensorDataset(x4, torch.tensor([0, 20, 1, 1])), (40,)),
    "many tokens": (MaskedToken(), TensorDataset(x4, LABELS), (5, 34)),
    "squared": (Regression(), TensorDataset(x4, torch.zeros(4, 40)), (40,)),
    "several labels": (MultiLabel(), TensorDataset(x4, torch.ones(4, 40)), (40,)),
}


@pytest.mark.parametrize("case", EXACT)
def test_the_factor_of_few_outputs_is_exact(case: str) -> None:
    risk, batch, z = Outputs.risk(*EXACT[case])
    assert isinstance(factor_of(risk, batch, z), FewOutputs)
    torch.testing.assert_close(squares(risk, batch, z, 1, 1), second_derivatives(risk, batch, z), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", DRAWN)
def test_a_drawn_factor_is_right_in_expectation(case: str) -> None:
    risk, batch, z = Outputs.risk(*DRAWN[case])
    found, expected = squares(risk, batch, z, 2, 100), second_derivatives(risk, batch, z)
    diagonal, right = (each.diagonal(dim1=1, dim2=2) for each in (found, expected))
    # 200 draws: a few per cent of each example's whole, the trace and its parts
    assert float((diagonal - right).norm() / right.norm()) < 0.35
    torch.testing.assert_close(diagonal.sum(dim=1), right.sum(dim=1), rtol=0.15, atol=1e-9)
    off = (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1).clamp_min(1e-12)
    assert float(off[expected.flatten(1).any(dim=1)].max()) < 0.7


def test_next_tokens_take_no_part_in_the_last_place() -> None:
    risk, batch, z = Outputs.risk(NextToken(), TensorDataset(torch.randint(0, 34, (4, 5))), (5, 34))
    factor = factor_of(risk, batch, z)
    assert isinstance(factor, Softmax)
    (column,) = factor.columns(risk, batch, z, 1, 0)
    assert not column[:, -1].any()
    # the mean over 4 predicted tokens: a root of 1/4, not 1/4
    p = z[:, :-1].softmax(dim=2)
    ends = (column[:, :-1] - p / 2).abs().max(dim=2).values
    torch.testing.assert_close(ends, torch.full_like(ends, 0.5))


def test_which_kind_a_loss_is_of() -> None:
    kinds = {case: type(factor_of(*Outputs.risk(*DRAWN[case]))) for case in DRAWN}
    softmax = {"tokens, mean", "tokens, sum", "many classes", "many tokens"}
    assert kinds == {case: Softmax if case in softmax else Elementwise for case in DRAWN}


def test_classes_on_the_first_axis() -> None:
    class Segments:
        def outputs(self, model: nn.Module, batch: Any) -> Tensor:
            return model(batch[0])

        def losses(self, outputs: Tensor, batch: Any) -> Tensor:
            return F.cross_entropy(outputs, batch[1], reduction="none").mean(dim=(1, 2))

    data = TensorDataset(x4, torch.randint(0, 6, (4, 2, 4)))
    factor = factor_of(*Outputs.risk(Segments(), data, (6, 2, 4)))
    assert isinstance(factor, Softmax)
    assert factor.axis == 1


def test_a_loss_without_a_known_root_is_refused() -> None:
    class Together:
        def outputs(self, model: nn.Module, batch: Any) -> Tensor:
            return model(batch[0])

        def losses(self, outputs: Tensor, batch: Any) -> Tensor:
            return outputs.square().sum(dim=1).square()

    with pytest.raises(DescriptionError, match=r"is none of them; use curvature=GaussNewton\(\)"):
        factor_of(*Outputs.risk(Together(), TensorDataset(x4), (40,)))


def test_a_loss_that_is_not_convex_is_refused() -> None:
    class Bent:
        def outputs(self, model: nn.Module, batch: Any) -> Tensor:
            return model(batch[0])

        def losses(self, outputs: Tensor, batch: Any) -> Tensor:
            return -outputs.square().sum(dim=1)

    risk, batch, z = Outputs.risk(Bent(), TensorDataset(x4), (3,))
    with pytest.raises(DescriptionError, match="loss of example 0 has a negative second derivative"):
        list(factor_of(risk, batch, z).columns(risk, batch, z, 1, 0))


# Solving


def rhs_of(bound: BoundStage, columns: int = 3) -> Tensor:
    return torch.randn(bound.trained.size, columns, generator=torch.Generator().manual_seed(9)).to(bound.trained.dtype)


@pytest.mark.parametrize("specimen", [MLP, CONVOLUTIONAL], ids=lambda specimen: specimen.name)
@pytest.mark.parametrize("exact", [0, 16])
def test_the_closed_form_is_the_inverse(specimen: Specimen, exact: int) -> None:
    bound = specimen.bound(weight_decay=0.02)
    operator, rhs = EKFAC(exact=exact).operator(bound), rhs_of(bound)
    solution = solve(operator, rhs, Direct(0.03, Shift))
    matrix = operator.to_dense()
    assert solution.products == 0
    assert solution.converged
    eye = torch.eye(len(matrix), dtype=matrix.dtype)
    torch.testing.assert_close(solution.value, torch.linalg.solve(matrix + 0.03 * eye, rhs), rtol=1e-8, atol=1e-10)
    # the fit itself is never damped, and the penalty is in once
    torch.testing.assert_close(matrix, dense(specimen, exact=exact) + 0.02 * eye, rtol=1e-9, atol=1e-12)


def test_many_columns_are_measured_in_the_basis_as_by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    operator, rhs = EKFAC(exact=0).operator(MLP.bound()), rhs_of(MLP.bound(), 30)
    rhs[:, 4] = 0.0
    many = solve(operator, rhs, Direct(1e-7, Shift))
    assert many.checks == 4
    with monkeypatch.context() as patch:
        patch.setattr(direct, "FEW", 30)
        alone = solve(operator, rhs, Direct(1e-7, Shift))
    assert alone.checks == 29
    torch.testing.assert_close(many.value, alone.value, rtol=1e-12, atol=0)
    assert many.relative_residuals[4] == 0.0
    # the answers' own rounding is all that either sees, so that they agree to its size
    assert 0 < many.relative_residual < 100 * alone.relative_residual < 1e-6
    eigen = operator.eigen()
    assert eigen is not None
    turned = replace(eigen, basis=Skewed())
    with monkeypatch.context() as patch:  # a basis that is none is not what the products know
        patch.setattr(type(operator), "eigen", lambda self: turned)
        wrong = solve(operator, rhs, Direct(1e-7, Shift))
    assert wrong.checks == 29
    assert not wrong.converged


class Skewed:
    """Coordinates of twice the size."""

    def into(self, columns: Tensor) -> Tensor:
        return 2 * columns

    def out(self, coordinates: Tensor) -> Tensor:
        return coordinates / 2

    def turned(self, diagonal: Tensor) -> Tensor | None:
        return diagonal


def test_without_damping_a_singular_matrix_is_said_to_be_one() -> None:
    bound = one_layer(2, 1)
    solution = solve(EKFAC(exact=0).operator(bound), rhs_of(bound), Direct(0.0, Shift))
    assert solution.status is Status.SINGULAR
    assert "rounding level" in solution.notes[0]


class Encoder(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh())


def chain_of(link: Any, weight_decay: float = 0.01) -> Chain:
    with torch.random.fork_rng():
        first, second = Encoder(1).double(), Encoder(2).double()
        if isinstance(link, Frozen):
            second.body.load_state_dict(first.body.state_dict())
        x, y = torch.randn(12, 3), torch.randint(0, 2, (12,))
    data = TensorDataset(x, y)
    return Chain(
        Stage("pretrain", model=first, objective=Classification(), data=data, weight_decay=weight_decay),
        Stage("finetune", model=second, objective=Classification(), data=data, link=link, weight_decay=weight_decay),
    )


def query_of(chain: Chain) -> Query:
    return Query(chain["finetune"].stage.data, reduction="none")


@pytest.mark.parametrize("link", [Frozen("body"), Proximal("body", alpha=0.1)], ids=["frozen", "proximal"])
def test_a_chain_is_solved_in_closed_form_at_every_stage(link: Any) -> None:
    chain = chain_of(link)
    result = trace(chain, query_of(chain), curvature="ekfac")
    by_products = trace(chain, query_of(chain), curvature=EKFAC(), solver=Lanczos(1e-8, 1e-10, filter=Shift))
    for stage in chain.names:
        solution = result.solutions[stage]
        assert solution.products == 0
        assert solution.converged
        assert any(note.startswith(f"EK-FAC covers all {chain[stage].trained.size}") for note in solution.notes)
        assert any("relative residual of" in note for note in solution.notes)
        torch.testing.assert_close(result[stage].values, by_products[stage].values, rtol=1e-3, atol=1e-6)


def test_a_pull_that_is_not_diagonal_in_the_basis_is_solved_by_products() -> None:
    pulls = {"body.weight": torch.linspace(0, 2, 12).double().reshape(4, 3), "body.bias": torch.ones(4).double()}
    chain = chain_of(Elastic("body", pulls))
    bound = chain["finetune"]
    assert not stays_diagonal(bound)
    operator = EKFAC().operator(bound)
    assert operator.eigen() is None
    result = trace(chain, query_of(chain), curvature="ekfac", of="finetune")
    assert result.solutions["finetune"].products > 0
    system = result.solutions["finetune"].system
    assert isinstance(system, Equation)
    assert isinstance(system.filter, Shift)
    matrix = operator.to_dense() + system.filter.damping * torch.eye(bound.trained.size, dtype=torch.float64)
    gradients = query_of(chain).gradient(bound).trained
    expected = torch.linalg.solve(matrix, gradients)
    assert float((result.solutions["finetune"].value - expected).norm() / expected.norm()) < 1e-2


def test_the_residual_in_the_true_system_is_measured() -> None:
    chain = Chain(MLP.stage(weight_decay=0.1))
    result = trace(chain, Query(MLP.data(), reduction="none"), curvature=EKFAC(), solver=Direct(0.05, Shift))
    solution, b = result.solutions["only"], Query(MLP.data(), reduction="none").gradient(chain["only"]).trained
    eye = torch.eye(31, dtype=torch.float64)
    true = dense_gauss_newtons(MLP).mean(dim=0) + 0.15 * eye
    residual = float((b[:, 0] - true @ solution.value[:, 0]).norm() / b[:, 0].norm())
    assert any(f"residual of {residual:.2g} " in note for note in solution.notes)


def test_of_long_texts_it_is_measured_on_two_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "PREDICTIONS", 64)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    one, label = torch.randn(1, 3, dtype=torch.float64), torch.tensor([1])
    alike = TensorDataset(one.expand(100, 3).clone(), label.expand(100).clone())  # so that every draw is the whole
    stage = Stage("fit", model=model, objective=Classification(), data=alike)
    result = trace(Chain(stage), Query([(one[0], label[0])]), curvature=EKFAC(exact=0), solver=Direct(0.3, Shift))
    solution = result.solutions["fit"]
    assert solution is not None
    true = GaussNewton().operator(Chain(stage)["fit"]).to_dense() + 0.3 * torch.eye(len(solution.value))
    gradient = Query([(one[0], label[0])]).gradient(Chain(stage)["fit"]).trained[:, 0]
    residual = float((gradient - true @ solution.value.reshape(-1)).norm() / gradient.norm())
    assert residual > 0.01
    assert f"relative residual of {residual:.2g}, measured on some of the examples" in solution.notes[-1]


def test_models_in_half_precision() -> None:
    single, half = SQUARED_MLP.bound(torch.float32), SQUARED_MLP.bound(torch.bfloat16)
    found, expected = (EKFAC(exact=0).operator(bound) for bound in (half, single))
    assert found.dtype == torch.bfloat16
    traces = [float(operator.to_dense().double().trace()) for operator in (found, expected)]
    assert abs(traces[0] / traces[1] - 1) < 0.02
    solution = solve(found, rhs_of(half), Direct(0.1, Shift))
    assert solution.converged
    reference = solve(expected, rhs_of(half).float(), Direct(0.1, Shift))
    assert float((solution.value.float() - reference.value).norm() / reference.value.norm()) < 0.1


# Kept fits


def test_a_kept_fit_is_read_and_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = CONVOLUTIONAL.bound(torch.float32)
    first = EKFAC(exact=16, cache=tmp_path).operator(bound).to_dense()
    (path,) = tmp_path.iterdir()
    monkeypatch.setattr("stagetrace.curvature.ekfac.choice.fit", None)  # nothing is fitted a second time
    assert torch.equal(EKFAC(exact=16, cache=tmp_path).operator(CONVOLUTIONAL.bound(torch.float32)).to_dense(), first)
    with pytest.raises(TypeError):  # other settings are another fit
        EKFAC(exact=0, cache=tmp_path).operator(bound).to_dense()
    other = CONVOLUTIONAL.bound(torch.float32)
    with torch.no_grad():
        next(other.stage.model.parameters()).add_(0.1)
    with pytest.raises(TypeError):  # and so are other weights
        EKFAC(exact=16, cache=tmp_path).operator(other).to_dense()
    assert path.exists()


def test_a_damaged_fit_is_refused(tmp_path: Path) -> None:
    EKFAC(cache=tmp_path).operator(MLP.bound()).to_dense()
    (path,) = tmp_path.iterdir()
    tensors = load_file(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        metadata = json.loads(file.read(length))["__metadata__"]
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] + 1.0}, path, metadata)
    with pytest.raises(ResultsError, match="remove the file, and it is fitted anew"):
        EKFAC(cache=tmp_path).operator(MLP.bound()).to_dense()


# Settings


def test_settings_are_checked() -> None:
    for settings in ({"draws": 0}, {"exact": -1}, {"examples": 0}, {"seed": 0.5}):
        with pytest.raises(DescriptionError):
            EKFAC(**settings)  # type: ignore[arg-type]


def test_a_plain_loss_has_no_outputs() -> None:
    bound = one_layer(2, 1, objective=lambda model, batch: model(batch[0]).square().sum(dim=1))
    with pytest.raises(DescriptionError, match="EKFAC needs the model's outputs"):
        EKFAC().operator(bound)
