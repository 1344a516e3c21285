"""Many right-hand sides at once: against dense float64 solves, column by column, however they were solved."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stagetrace import Chain, GaussNewton, Hessian, Lanczos, Proximal, Shift, Solution, Stage
from stagetrace.curvature.operator import DenseOperator, DiagonalOperator, Factor, LinearOperator, Rows, Shares
from stagetrace.errors import DescriptionError, SolveError
from stagetrace.objectives import Classification, Regression
from stagetrace.solvers import Status, solve, woodbury
from stagetrace.solvers import sample_space as by_rows
from stagetrace.solvers.together import MANY, VALUES, tolerance
from tests.solvers.cases import Counting, Spectrum, random_operator

DAMPING = 0.01
DECAYING = Spectrum("decaying", np.concatenate([np.logspace(1, -2, 30), np.logspace(-2, -7, 170)]))


def dense(operator: LinearOperator) -> Tensor:
    return operator.to_dense().double()


def true_residuals(operator: LinearOperator, found: Solution, rhs: Tensor, damping: float = DAMPING) -> Tensor:
    """`|b - (A + damping I) x| / |b|` of each column, in float64; 0 of a zero one."""
    matrix = dense(operator) + damping * torch.eye(operator.size, dtype=torch.float64)
    left = (rhs.double() - matrix @ found.value.double()).norm(dim=0)
    return left / rhs.double().norm(dim=0).clamp_min(1e-300)


def check(operator: LinearOperator, rhs: Tensor, found: Solution, rounding: float = 1e-4) -> None:
    """Every column's residual is what was said, to rounding, and within the tolerance."""
    true = true_residuals(operator, found, rhs)
    said = torch.tensor(found.relative_residuals, dtype=torch.float64)
    assert said.shape == (rhs.shape[1],)
    assert bool((true <= said + rounding * found.tolerance + 20 * torch.finfo(rhs.dtype).eps).all())
    assert bool((true <= found.tolerance * (1 + rounding) + 20 * torch.finfo(rhs.dtype).eps).all())
    assert found.converged


def columns(size: int, k: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(size, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def network(
    dtype: torch.dtype = torch.float64, examples: int = 40, loss: object = None, weight_decay: float = 0.0
) -> Chain:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(examples, 5, generator=generator)
    y = torch.randint(0, 3, (examples,), generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)
    target = nn.functional.one_hot(y, 3).float() if isinstance(loss, Regression | Concave) else y
    stage = Stage(
        "a",
        model=model,
        objective=loss or Classification(),  # pyright: ignore[reportArgumentType]
        data=TensorDataset(x, target),
        weight_decay=weight_decay,
    )
    return Chain(stage)


def gauss_newton(chain: Chain, stage: str = "a") -> LinearOperator:
    return GaussNewton().operator(chain[stage])


# The tolerance


def test_many_columns_ask_for_less_unless_the_user_says():
    assert [tolerance("auto", k) for k in (1, MANY - 1, MANY, 1000)] == [1e-4, 1e-4, VALUES, VALUES]
    assert tolerance(1e-7, 1000) == 1e-7
    operator = random_operator(DECAYING)
    for k, asked in ((2, 1e-4), (12, VALUES)):
        assert solve(operator, columns(200, k), Lanczos(DAMPING, filter=Shift)).tolerance == asked
    exact = solve(operator, columns(200, 12), Lanczos(DAMPING, 1e-9, filter=Shift))
    check(operator, columns(200, 12), exact, rounding=0.1)


# One Krylov basis


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-2), (torch.float64, 1e-8), (torch.float32, 1e-3)])
def test_a_shared_basis_takes_far_fewer_products_to_the_same_answers(dtype: torch.dtype, rtol: float):
    counting = Counting(random_operator(replace(DECAYING, dtype=dtype)))
    rhs = columns(200, 40, dtype)
    shared = solve(counting, rhs, Lanczos(DAMPING, rtol, filter=Shift))
    assert counting.columns == shared.products + shared.checks
    check(counting, rhs, shared, rounding=0.05)
    alone = solve(counting.inner, rhs, Lanczos(DAMPING, rtol, filter=Shift, many="separate"))
    assert shared.products < alone.products / 2
    assert "shared one Krylov basis" in shared.notes[0]
    truth = torch.linalg.solve(dense(counting.inner) + DAMPING * torch.eye(200).double(), rhs.double())
    # |x - y| <= |A^-1| |r|, and |b| <= |A| |y|
    assert bool(((shared.value.double() - truth).norm(dim=0) <= 1.1 * rtol * rhs.double().norm(dim=0) / DAMPING).all())


def test_zero_and_equal_columns_and_few_dimensions():
    operator = random_operator(DECAYING)
    rhs = columns(200, 3).repeat(1, 5)
    rhs[:, [2, 9]] = 0.0
    found = solve(operator, rhs, Lanczos(DAMPING, 1e-6, filter=Shift))
    check(operator, rhs, found, rounding=0.05)
    assert bool((found.value[:, [2, 9]] == 0).all())
    assert found.relative_residuals[2] == 0.0
    assert torch.allclose(found.value[:, 0], found.value[:, 3], rtol=1e-4, atol=1e-6)
    nothing = solve(operator, torch.zeros(200, 12).double(), Lanczos(DAMPING, filter=Shift))
    assert (nothing.products, nothing.checks, nothing.converged) == (0, 0, True)


def test_a_rank_deficient_operator_is_solved_outside_its_range_too():
    values = np.concatenate([np.linspace(1, 5, 12), np.zeros(188)])
    operator = random_operator(Spectrum("rank 12", values))
    rhs = columns(200, 30)
    found = solve(operator, rhs, Lanczos(DAMPING, 1e-6, filter=Shift))
    check(operator, rhs, found, rounding=0.05)
    assert found.products < 30 + 30 * 3


def test_indefinite_operators_are_left_to_the_least_residual_of_each_column():
    values = np.concatenate([np.linspace(-1, -0.5, 10), np.logspace(-1, 1, 50)])
    operator = random_operator(Spectrum("indefinite", values, definite=False))
    rhs = columns(60, 12)
    found = solve(operator, rhs, Lanczos(DAMPING, 1e-6, filter=Shift))
    check(operator, rhs, found, rounding=0.05)
    assert any("not positive definite" in note for note in found.notes)
    with pytest.raises(DescriptionError, match="not positive definite"):
        solve(operator, rhs, Lanczos(DAMPING, 1e-6, filter=Shift, many="shared basis"))


def test_nothing_is_shared_where_it_would_save_nothing():
    operator = random_operator(Spectrum("identity", np.full(60, 2.0)))
    counting = Counting(operator)
    found = solve(counting, columns(60, 12), Lanczos(DAMPING, 1e-6, filter=Shift))
    assert counting.columns == found.products + found.checks <= 12 * 2 + 12 + 1
    check(operator, columns(60, 12), found, rounding=0.05)


def test_the_squared_system_stays_with_each_column_and_says_so():
    operator = random_operator(DECAYING)
    found = solve(operator, columns(200, 12), Lanczos(DAMPING, 1e-4))
    assert found.converged
    assert any("12 right-hand sides were solved one by one" in note for note in found.notes)
    with pytest.raises(DescriptionError, match="is solved column by column; type many='auto'"):
        solve(operator, columns(200, 12), Lanczos(DAMPING, many="sample space"))


@pytest.mark.parametrize("mode", ["auto", "separate"])
def test_one_column_is_solved_as_ever(mode: str):
    operator = random_operator(DECAYING)
    one = solve(operator, columns(200, 1), Lanczos(DAMPING, filter=Shift, many=mode))  # pyright: ignore[reportArgumentType]
    assert one.tolerance == 1e-4
    assert one.notes == ()
    assert one.spectrum is not None


def test_a_small_memory_makes_groups_of_columns_and_a_short_basis():
    operator = random_operator(DECAYING)
    rhs = columns(200, 20)
    found = solve(operator, rhs, Lanczos(DAMPING, 1e-4, filter=Shift, memory=25 * 8 * 200))
    check(operator, rhs, found, rounding=0.05)


# The space of the examples


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("loss", [Classification(), Regression()], ids=["classes", "squares"])
def test_rows_make_the_gauss_newton_matrix(dtype: torch.dtype, loss: object):
    operator = gauss_newton(network(dtype, loss=loss))
    factor = operator.factor()
    assert isinstance(factor, Factor)
    ones = torch.ones(operator.size, dtype=dtype)
    rows = factor.rows(ones, 0.0, 1.0, 2**30)
    assert rows is not None
    matrix, eps = dense(operator), torch.finfo(dtype).eps
    assert len(rows.matrix) <= factor.most_rows == 120
    gap = rows.matrix.double().mT @ rows.matrix.double() - matrix
    assert float(gap.abs().max()) <= 100 * eps * float(matrix.abs().max())
    # rows left out change the matrix by no more than their squared norms say
    fewer = factor.rows(ones, float(rows.matrix.square().sum(dim=1).median()), 1.0, 2**30)
    assert fewer is not None
    assert 0 < len(fewer.matrix) < len(rows.matrix)
    gap = matrix - fewer.matrix.double().mT @ fewer.matrix.double()
    assert 0 < float(torch.linalg.matrix_norm(gap, 2)) <= fewer.left_out + 100 * eps
    # in another metric, and a tighter memory: fewer rows, or none
    scale = torch.linspace(0.5, 2, operator.size).to(dtype)
    scaled = factor.rows(scale, 0.0, 1.0, 2**30)
    assert scaled is not None
    again = rows.matrix * scale
    assert torch.allclose(scaled.matrix.mT @ scaled.matrix, again.mT @ again, rtol=1e-4, atol=1e-6)
    assert bool((scaled.squares.diff() <= 0).all())
    assert torch.allclose(scaled.matrix.double().square().sum(dim=1), scaled.squares, rtol=1e-5)
    half = factor.rows(ones, 0.0, 10.0, rows.matrix.numel() * rows.matrix.element_size())
    assert half is not None
    assert len(half.matrix) <= len(rows.matrix) / 2 + 1
    assert factor.rows(ones, 0.0, 1e-6, 100) is None


@pytest.mark.parametrize(
    ("dtype", "rtol", "k"),
    [(torch.float64, 0.1, 30), (torch.float64, 1e-5, 1), (torch.float32, 1e-2, 2), (torch.float32, 1e-5, 12)],
)
def test_the_sample_space_solves_every_column(dtype: torch.dtype, rtol: float, k: int):
    operator = gauss_newton(network(dtype))
    rhs = columns(operator.size, k, dtype)
    found = solve(operator, rhs, Lanczos(DAMPING, rtol, filter=Shift, many="sample space"))
    check(operator, rhs, found, rounding=0.05)
    assert "in the space of" in found.notes[0]
    alone = solve(operator, rhs, Lanczos(DAMPING, rtol / 10, filter=Shift, many="separate"))
    apart = (found.value - alone.value).norm(dim=0) / rhs.norm(dim=0)
    assert bool((apart <= 1.2 * rtol / DAMPING).all())


def test_rows_that_were_left_out_are_made_up_for():
    operator = gauss_newton(network())
    factor = operator.factor()
    assert isinstance(factor, Factor)
    rows = factor.rows(torch.full((66,), DAMPING**-0.5).double(), 0.0, 1.0, 2**30)
    assert rows is not None
    norms, rhs, products = rows.matrix.square().sum(dim=1), columns(66, 30), list[int]()
    norms = norms[norms > 1e-9]  # what rounding leaves of a direction that is none
    for share in (1.0, 0.5, 0.0):  # of the rows that are left to corrections
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(woodbury, "LEVELS", (1e-6 / float(norms.quantile(share)),))
            found = solve(operator, rhs, Lanczos(DAMPING, 1e-6, filter=Shift, many="sample space"))
        check(operator, rhs, found, rounding=0.05)
        products.append(found.products)
    assert products[0] > products[1] > products[2]


def test_where_memory_holds_few_rows_the_operator_takes_their_place():
    chain = network()
    counting = Counting(gauss_newton(chain))
    factor = counting.inner.factor()
    assert isinstance(factor, Factor)
    rhs = columns(counting.size, 12)
    space = by_rows.SampleSpace(counting, factor, 5.0, 0.05, 40 * 8 * counting.size)
    few = space.solve(space.rows(), rhs, lambda step, r, /: None)
    assert counting.columns == few.products + few.checks >= 12
    assert max(few.residuals) <= 0.05
    with pytest.raises(by_rows.RowsUnfitError, match="its rows take more than 1,000 bytes"):
        by_rows.SampleSpace(counting, factor, DAMPING, 0.01, 1000).rows()
    found = solve(counting.inner, rhs, Lanczos(DAMPING, 0.01, filter=Shift, memory=3000))
    check(counting.inner, rhs, found, rounding=0.05)


def test_penalties_that_differ_between_parameters_are_exact():
    before = network(weight_decay=0.2)["a"].stage
    after = replace(
        before, name="b", model=network()["a"].stage.model, link=Proximal({"0": "0"}, alpha=0.3), weight_decay=0.1
    )
    operator = gauss_newton(Chain(before, after), "b")
    assert len(operator.right.diagonal.unique()) > 1  # pyright: ignore[reportAttributeAccessIssue]
    rhs = columns(operator.size, 15)
    for damping in (0.0, 0.05):
        solver = Lanczos(damping, 1e-9, filter=Shift, many="sample space")
        found = solve(operator, rhs, solver)
        assert bool((true_residuals(operator, found, rhs, damping) <= 1e-9).all())


def test_one_example_and_equal_examples():
    rhs = columns(66, 12)
    for chain in (network(examples=1), network(examples=3)):
        operator = gauss_newton(chain)
        check(operator, rhs, solve(operator, rhs, Lanczos(DAMPING, 1e-9, filter=Shift, many="sample space")), 0.05)
    x, y = torch.ones(6, 5), torch.zeros(6, dtype=torch.long)
    stage = replace(network()["a"].stage, data=TensorDataset(x, y))
    operator = gauss_newton(Chain(stage))
    same = rhs[:, :1].repeat(1, 12)
    found = solve(operator, same, Lanczos(DAMPING, 1e-9, filter=Shift, many="sample space"))
    check(operator, same, found, 0.05)


def test_the_sample_space_is_refused_with_the_reason():
    rhs = columns(66, 12)

    def refused(operator: LinearOperator, reason: str, damping: float = DAMPING) -> None:
        with pytest.raises(DescriptionError, match=reason):
            solve(operator, rhs, Lanczos(damping, filter=Shift, many="sample space"))

    refused(Hessian().operator(network()["a"]), "the Hessian is no sum of squares")
    refused(DenseOperator(torch.eye(66).double()), "DenseOperator is no average of few rows an example")
    refused(gauss_newton(network()), "the diagonal beside the rows is not positive", damping=0.0)
    refused(gauss_newton(network()) + DenseOperator(torch.eye(66).double()), "DenseOperator is no diagonal")

    refused(gauss_newton(network(loss=Concave())), "the loss is not convex in the outputs")
    found = solve(gauss_newton(network(loss=Concave())), rhs, Lanczos(5.0, filter=Shift))
    assert found.converged


def test_rows_of_another_operator_are_found_out():
    right = gauss_newton(network())
    factor = right.factor()
    assert isinstance(factor, Factor)

    def halved(*settings: object) -> Rows:
        rows = factor.rows(*settings)  # pyright: ignore[reportArgumentType, reportCallIssue]
        assert rows is not None
        return Rows(rows.matrix / 2, rows.squares / 4, rows.left_out)

    rhs = columns(right.size, 12)
    wrong = by_rows.SampleSpace(right, replace(factor, rows=halved), DAMPING, 1e-2, 2**30)
    with pytest.raises(by_rows.RowsUnfitError, match="its rows and its products differ by"):
        wrong.solve(wrong.rows(), rhs, lambda step, r, /: None)


def test_a_single_column_of_which_the_rows_know_nothing_is_found_out():
    """Products and rows differ along one direction, which one column of forty has a part in."""
    right, factor = gauss_newton(network()), gauss_newton(network()).factor()
    assert isinstance(factor, Factor)
    rhs, odd = columns(66, 40), columns(66, 1, seed=5)
    rhs -= odd @ (odd.mT @ rhs) / odd.square().sum()
    rhs[:, 17] += 0.1 * odd[:, 0]
    along = right @ odd / odd.norm() + odd
    wrong = DenseOperator(dense(right) + along @ along.mT)
    space = by_rows.SampleSpace(wrong, factor, DAMPING, 1e-2, 2**30)
    with pytest.raises(by_rows.RowsUnfitError, match="its rows and its products differ by"):
        space.solve(space.rows(), rhs, lambda step, r, /: None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_inverse_that_grows_is_the_inverse_by_all_its_rows(dtype: torch.dtype):
    directions, sizes = torch.linalg.qr(columns(400, 300)).Q.mT, torch.logspace(1, -2, 300).double()
    directions = directions + directions.roll(100, 0) / 2  # small rows have to do with large ones
    rows, root = (directions * sizes.unsqueeze(1)).to(dtype), torch.linspace(0.5, 2, 400).to(dtype).unsqueeze(1)
    squares, matrix = rows.double().square().sum(dim=1), rows.double().mT @ rows.double() + torch.eye(400).double()
    c = (directions[165:215].mT @ columns(50, 50, seed=1)).to(dtype)  # so that rows of that size matter
    sizes, steps = (root * c).double().norm(dim=0), list[int]()
    for few in (2, 50, 5000):
        inverse = woodbury.Woodbury(rows, squares, root, 1e-2, Shares())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(woodbury, "BLOCK", 16)
            patch.setattr(woodbury, "EXPECTED", 1e-9)  # so that it begins with the fewest
            inverse.fit(few, c[:, ::4], sizes[::4])
        y, r = inverse.solved(c.clone(), sizes)
        true = c.double() - matrix @ y.double()
        assert float(((root * true).norm(dim=0) / sizes).max()) <= 1e-2
        apart = (root * (true - r.double())).norm(dim=0) / sizes
        assert float(apart.max()) <= (1e-10 if dtype == torch.float64 else 1e-3)
        steps.append(inverse.large)
    assert inverse.products == 0  # a wrong factor would be corrected, column by column
    assert steps == sorted(steps)
    assert int((squares > 1e-2 / woodbury.LEVELS[0]).sum()) < steps[2] < 300


def test_the_way_is_chosen_by_count_and_said():
    operator = gauss_newton(network())
    few, many = (solve(operator, columns(66, k), Lanczos(DAMPING, filter=Shift)) for k in (2, 200))
    assert "in the space of" in many.notes[0]
    assert many.notes[1].startswith("chosen by counted work, relatively: separate ")
    assert many.notes[2].startswith("asked for a relative residual of 0.01, the default for 10 or more")
    assert few.converged
    again = solve(operator, columns(66, 200), Lanczos(DAMPING, filter=Shift))
    assert torch.equal(again.value, many.value)


def test_a_mode_that_is_none_is_refused():
    with pytest.raises(DescriptionError, match=r"many=.* must be one of 'auto', 'separate'"):
        Lanczos(many="both")  # pyright: ignore[reportArgumentType]


def test_diagonals_add_to_a_factor():
    operator = gauss_newton(network()) + DiagonalOperator(torch.full((66,), 0.25).double())
    factor = operator.factor()
    assert isinstance(factor, Factor)
    assert bool((factor.diagonal == 0.25).all())
    assert isinstance((operator + DiagonalOperator(torch.full((66,), -1.0).double())).factor(), str)


class Concave:
    """A squared error with the sign turned, where it is above a limit."""

    def __init__(self, limit: float = 0.0) -> None:
        self.limit, self.squares = limit, Regression()

    def outputs(self, model: nn.Module, batch: object) -> Tensor:
        return self.squares.outputs(model, batch)

    def losses(self, outputs: Tensor, batch: object) -> Tensor:
        found = self.squares.losses(outputs, batch)
        return torch.where(found >= self.limit, -found, found)


def test_losses_that_turn_out_concave_later_are_refused_too():
    operator = gauss_newton(network(loss=Concave(0.4)))
    factor = operator.factor()
    if isinstance(factor, Factor):
        with pytest.raises(SolveError, match="not convex"):
            factor.rows(torch.ones(66).double(), 0.0, 1.0, 2**30)
    assert solve(operator, columns(66, 12), Lanczos(5.0, filter=Shift)).status in (Status.CONVERGED,)
