"""`bench`: its exact answers against dense ones, its judgements for known scores, and its rows' names."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

pytest.importorskip("typer")

from benchmarks.bench.judged import compared, foreseen
from benchmarks.bench.measured import Measured
from benchmarks.bench.products import Exact
from benchmarks.bench.references import Krylov, References
from benchmarks.bench.rows import rows
from benchmarks.bench.tables import TITLES, tables
from benchmarks.bench.truth import Truth
from benchmarks.report import Report
from benchmarks.rivals.call import called
from benchmarks.rivals.given import Given, Settings, layers
from benchmarks.rivals.process import Spent
from benchmarks.rivals.stagetrace import METHODS
from benchmarks.setting import Asked
from stagetrace.curvature.subset import seeded_subset

EXAMPLES, QUERIES, DAMPING = 30, 4, 0.1
CHOSEN = tuple(seeded_subset(EXAMPLES, 20, 0))


def given(*, mean: bool) -> Given:
    """A network of 27 parameters on drawn vectors."""
    torch.manual_seed(0)
    model = layers(3, 3, 3).eval()
    labels = torch.arange(EXAMPLES) % 3
    train = TensorDataset(torch.randn(EXAMPLES, 3), labels)
    tests = TensorDataset(torch.randn(QUERIES, 3), labels[:QUERIES])
    return Given(Settings("vectors", DAMPING, mean=mean), model, train, tests, CHOSEN)


def dense(of: Given) -> tuple[Tensor, Tensor, Tensor]:
    """H, G of the chosen examples, and minus the gradients of all, as matrices in float64."""
    model = layers(3, 3, 3).double()
    names = [(name, p.shape) for name, p in of.model.named_parameters()]
    flat = torch.cat([p.detach().flatten().double() for p in of.model.parameters()])

    def logits(w: Tensor, inputs: Tensor) -> Tensor:
        parts = w.split([math.prod(shape) for _, shape in names])
        at = {name: part.view(shape) for (name, shape), part in zip(names, parts, strict=True)}
        return torch.func.functional_call(model, at, (inputs.double(),))

    inputs, labels = of.curvature_batch
    H = torch.autograd.functional.hessian(lambda w: cross_entropy(logits(w, inputs), labels), flat)
    J = torch.autograd.functional.jacobian(lambda w: logits(w, inputs), flat)
    p = logits(flat, inputs).softmax(dim=1)
    B = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    G = torch.einsum("ncp,nck,nkq->pq", J, B, J) / len(inputs)
    x, y = of.train.tensors
    slopes = torch.autograd.functional.jacobian(lambda w: cross_entropy(logits(w, x), y, reduction="none"), flat)
    assert isinstance(H, Tensor)
    assert isinstance(slopes, Tensor)
    return H, G, -slopes


def test_products_are_those_of_dense_matrices() -> None:
    of = given(mean=True)
    H, G, _ = dense(of)
    exact, v = Exact(of), torch.linspace(-1, 1, len(H), dtype=torch.float64)
    torch.testing.assert_close(exact.hessian(v), H @ v)
    torch.testing.assert_close(exact.gauss_newton(v), G @ v)
    R = exact.rows()
    torch.testing.assert_close(R.mT @ R, G)


@pytest.mark.parametrize("squared", [False, True])
def test_a_krylov_space_solves_an_indefinite_system(squared: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    A = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    A, b = A + A.mT, torch.randn(12, generator=generator, dtype=torch.float64)
    eye = torch.eye(12, dtype=torch.float64)
    want = torch.linalg.solve(A @ A + 0.1 * eye, A @ b) if squared else torch.linalg.solve(A + 0.1 * eye, b)
    space = Krylov(lambda v: A @ v, b)
    space._grow(12)
    x, residual = space.solved(0.1, squared=squared)
    torch.testing.assert_close(x, want)
    assert residual < 1e-10


@pytest.mark.parametrize("mean", [True, False])
def test_references_and_this_librarys_rows_agree_with_dense_solutions(mean: bool, tmp_path: Path) -> None:
    of = given(mean=mean)
    of.write(tmp_path / "given.safetensors")
    of = Given.read(tmp_path / "given.safetensors")
    _, G, slopes = dense(of)
    exact = Exact(of)
    b = exact.query()[:, None] if mean else exact.each_gradient(*of.tests.tensors).mT
    want = torch.linalg.solve(G + DAMPING * torch.eye(len(G), dtype=G.dtype), b)
    made, found = (References(of, "digits", tmp_path).of(f"G + {DAMPING}") for _ in range(2))  # made, then read back
    assert made is not None
    assert found is not None
    for each in (made, found):
        assert each.residual < 1e-10
        torch.testing.assert_close(each.solution, want)
        torch.testing.assert_close(each.scores, (slopes @ want).mT)
    spent = Spent()
    ours = METHODS["Gauss-Newton"](of, spent)
    assert ours.system == f"G + {DAMPING:g}"
    torch.testing.assert_close(
        ours.scores.double(), found.scores, rtol=1e-2, atol=1e-2 * float(found.scores.abs().max())
    )
    assert set(spent.phases) == {"all"}


@pytest.mark.parametrize(
    "method",
    ["EKFAC", *(pytest.param(m, marks=pytest.mark.slow) for m in ("Hessian squared", "default", "score one vector"))],
)
def test_every_row_of_this_library_runs(method: str) -> None:
    of = given(mean=True)
    found = METHODS[method](of, Spent())
    assert found.scores.shape == (1, EXAMPLES)
    if method == "Hessian squared":
        H, _, slopes = dense(of)
        want = torch.linalg.solve(H @ H + 1e-3 * torch.eye(len(H), dtype=H.dtype), H @ Exact(of).query())
        assert found.system == "H^2 + 0.001"
        torch.testing.assert_close(found.scores[0].double(), slopes @ want, rtol=0.05, atol=0.05)
    if method == "score one vector":
        assert found.notes[0].endswith("forward passes")


def test_scores_are_judged_by_the_example_and_by_the_group() -> None:
    generator = torch.Generator().manual_seed(1)
    exact = torch.randn(5, 300, generator=generator, dtype=torch.float64)
    assert compared(-exact, exact) == {"r": -1.0, "recall@100": 0.0}
    members = torch.rand(12, 300, generator=generator) < 0.1
    each = -(exact @ members.mT.double()).mT / 300  # leaving a harmful example out lowers the loss
    changes = torch.cat([each.mean(dim=1, keepdim=True), each], dim=1)[None]
    truth = Truth(members, changes)
    assert foreseen(exact, truth) == foreseen(exact.mean(dim=0, keepdim=True), truth) == 1.0
    assert foreseen(-exact, truth) == -1.0


def test_the_reliability_of_the_truth_is_spearman_and_browns() -> None:
    a, b = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    changes = torch.stack([a + b, a - b, a])[:, :, None].double()  # correlations 0, and 1 / sqrt 2 twice
    found = Truth(torch.zeros(4, 1).bool(), changes).reliability()
    r = 2**0.5 / 3
    assert found["r of two orders"] == pytest.approx(r)
    assert found["ceiling"] == pytest.approx((3 * r / (1 + 2 * r)) ** 0.5)


def test_tables_hold_every_row_and_aims_are_ratios_of_seconds(tmp_path: Path) -> None:
    asks = rows(quick=False)
    shared = {"products": 3, "peak MB": 2.0, "before MB": 1.0, "covers": 5, "of": 10, "approximates": None}
    line = {**shared, "system": "G + 0.01", "notes": ["2.5 forward passes"]}
    done = [Measured(ask, {**line, "in all, s": 1.0 if ask.rival == "stagetrace" else 8.0}, tmp_path) for ask in asks]
    failed = Measured(asks[-1], {"left out": "no time"}, tmp_path)
    report = Report("bench", Asked(tmp_path))
    tables(report, [*done[:-1], failed], {})
    assert sum(len(report.fields[part]) for part in TITLES) == len(asks) - 2  # the scoring row has no table
    assert [row["why"] for row in report.fields["left_out"]] == ["no time"]
    aims = {row["what"]: row["reached"] for row in report.targets}
    assert aims["one query, seconds over curvlinops' conjugate gradients: G + 0.01, the same system"] == 1 / 8
    assert aims["scores of one solution, in forward passes"] == 2.5
    assert not any("ranks" in what for what in aims)


@pytest.mark.parametrize("quick", [False, True])
def test_rows_have_names_of_their_own(quick: bool) -> None:
    asks = rows(quick)
    assert len({ask.slug for ask in asks}) == len({ask.name for ask in asks}) == len(asks)
    (one,) = [ask for ask in asks if ask.wanted(("curvlinops/one/CG, GGN",))]
    assert one.wanted(("curvlinops",))
    assert not one.wanted(("curvlinops/100", "curv"))
    assert not any(ask.long and ask.wanted(()) for ask in asks)


def test_a_library_that_cannot_be_called_is_a_row_with_its_reason(tmp_path: Path) -> None:
    missing = called(tmp_path / "python", "captum", "Arnoldi", tmp_path / "given", tmp_path / "out")
    assert "No such file" in missing.line["left out"]
    failed = called(Path(sys.executable), "nobody", "Arnoldi", tmp_path / "given", tmp_path / "out")
    assert "benchmarks.rivals.nobody" in failed.line["left out"]
