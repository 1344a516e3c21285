"""The tables that the solver tests run over, and the slow, obvious oracles: dense float64 SciPy."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from stagetrace.curvature.operator import DenseOperator, LinearOperator
from stagetrace.solvers import CG, Direct, EarlyStopping, Inverse, Lanczos, LiSSA, Normal, Shift, Solution, Solver

DAMPING = 0.05
SHORT = 12_000  # bytes: too few for the basis of one column, enough for a short recurrence of two


@dataclass(frozen=True)
class Case:
    """A solver for a given tolerance, which system it solves, and what it asks of the operator."""

    name: str
    make: Callable[[float], Solver]
    squared: bool
    definite: bool = False
    mild: bool = False

    def __str__(self) -> str:
        return self.name

    def suits(self, spectrum: "Spectrum") -> bool:
        return (spectrum.definite or not self.definite) and (spectrum.mild or not self.mild)


SOLVERS = [
    Case("lanczos", lambda rtol: Lanczos(DAMPING, rtol), squared=True),
    Case("lanczos-short", lambda rtol: Lanczos(DAMPING, rtol, memory=SHORT), squared=True),
    Case("lanczos-shift", lambda rtol: Lanczos(DAMPING, rtol, filter=Shift), squared=False),
    Case("lanczos-shift-short", lambda rtol: Lanczos(DAMPING, rtol, filter=Shift, memory=SHORT), squared=False),
    Case("cg", lambda rtol: CG(DAMPING, rtol), squared=False, definite=True),
    Case("normal-cg", lambda rtol: Normal(CG(rtol=rtol, max_steps=3000), DAMPING), squared=True),
    Case("normal-direct", lambda rtol: Normal(Direct(), DAMPING), squared=True),
    Case("direct", lambda rtol: Direct(DAMPING), squared=True),
    Case("direct-shift", lambda rtol: Direct(DAMPING, Shift), squared=False),
    Case("lissa", lambda rtol: LiSSA(DAMPING, rtol), squared=False, definite=True, mild=True),
    Case("lissa-scaled", lambda rtol: LiSSA(DAMPING, rtol, scale=15.0), squared=False, definite=True, mild=True),
]

STOPPED = [
    Case("early-stopping", lambda rtol: EarlyStopping(2.0, rtol=rtol), squared=False),
    Case("early-stopping-short", lambda rtol: EarlyStopping(2.0, rtol=rtol, memory=SHORT), squared=False),
    Case(
        "early-stopping-scaled",
        lambda rtol: EarlyStopping(2.0, torch.linspace(1, 2, 60, dtype=torch.float64), 0.1, rtol),
        squared=False,
    ),
]
"""Solvers of no linear system: the laws are theirs too, the oracles below are not."""


@dataclass(frozen=True)
class Spectrum:
    """The eigenvalues of a random symmetric operator, and the tolerance to ask for on it."""

    name: str
    eigenvalues: np.ndarray = field(repr=False)
    rtol: float = 1e-8
    dtype: torch.dtype = torch.float64
    definite: bool = True
    mild: bool = False

    def __str__(self) -> str:
        return self.name


SPECTRA = [
    Spectrum("spd", np.linspace(1, 10, 60), mild=True),
    Spectrum("ill-conditioned", np.logspace(-5, 1, 60)),
    Spectrum("indefinite", np.concatenate([-np.logspace(-2, 0, 20), np.logspace(-2, 1, 40)]), definite=False),
    Spectrum("low-rank", np.concatenate([np.zeros(30), np.ones(15), np.full(15, 5.0)])),
    Spectrum("float32", np.linspace(1, 10, 60), rtol=1e-4, dtype=torch.float32, mild=True),
]


def random_operator(spectrum: Spectrum, seed: int = 0) -> DenseOperator:
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((len(spectrum.eigenvalues),) * 2))
    matrix = (basis * spectrum.eigenvalues) @ basis.T
    return DenseOperator(torch.from_numpy((matrix + matrix.T) / 2).to(spectrum.dtype))


def random_rhs(operator: LinearOperator, *columns: int, seed: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((operator.size, *columns))).to(operator.dtype)


def float64(tensor: Tensor) -> np.ndarray:
    return tensor.double().numpy()


def system(
    operator: LinearOperator, rhs: Tensor, squared: bool, damping: float = DAMPING
) -> tuple[np.ndarray, np.ndarray]:
    """The dense matrix and right-hand side of the system a solver claims to solve."""
    H, b = float64(operator.to_dense()), float64(rhs)
    identity = np.eye(len(H))
    return (H @ H + damping * identity, H @ b) if squared else (H + damping * identity, b)


def oracle(operator: DenseOperator, rhs: Tensor, squared: bool, damping: float = DAMPING) -> np.ndarray:
    return scipy.linalg.solve(*system(operator, rhs, squared, damping), assume_a="sym")


def error(value: Tensor, truth: np.ndarray) -> float:
    return float(np.linalg.norm(float64(value) - truth) / np.linalg.norm(truth))


def condition(matrix: np.ndarray) -> float:
    """The condition number on the range of a symmetric matrix."""
    sizes = np.abs(np.linalg.eigvalsh(matrix))
    return float(sizes.max() / sizes[sizes > 1e-9 * sizes.max()].min())


def apart(matrix: np.ndarray, *solutions: Solution) -> float:
    """How far answers for the same right-hand side may lie apart, relatively: condition times what is left of each.

    |x - y| <= |A^-1| (|r_x| + |r_y|), whatever the order of the sums; a measured residual is itself rounded to about
    eps times the condition number.
    """
    rounding = 50 * torch.finfo(solutions[0].value.dtype).eps * condition(matrix)
    return 1.01 * condition(matrix) * sum(solution.relative_residual + rounding for solution in solutions)


def prepared(solver: Solver, operator: LinearOperator) -> Inverse:
    """The solver's own system of the operator, ready for several right-hand sides."""
    return solver.prepare(solver.rule(operator))


class Counting(LinearOperator):
    """Counts the columns that are multiplied, whoever asks."""

    def __init__(self, inner: LinearOperator) -> None:
        self.inner, self.columns, self.calls = inner, 0, 0
        self.size, self.dtype, self.device = inner.size, inner.dtype, inner.device

    def apply(self, vectors: Tensor) -> Tensor:
        self.columns, self.calls = self.columns + vectors.shape[1], self.calls + 1
        return self.inner.apply(vectors)


class Average(LinearOperator):
    """`mean a a'` over examples: an operator that can be drawn from."""

    def __init__(self, examples: Tensor) -> None:
        self.examples = examples
        self.size, self.dtype, self.device = examples.shape[1], examples.dtype, examples.device

    def apply(self, vectors: Tensor) -> Tensor:
        return self.examples.T @ (self.examples @ vectors) / len(self.examples)

    def subsample(self, examples: int, generator: torch.Generator) -> LinearOperator:
        return Average(self.examples[torch.randperm(len(self.examples), generator=generator)[:examples]])
