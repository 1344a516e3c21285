"""Exact solutions of the systems that rows claim to solve, in float64, each with its residual by a true product.

One query: Lanczos on H or on G, orthogonalised fully, until the residual is below 1e-10; one run serves every damping
of its matrix. Many queries: in sample space, `x = (b - R' (R R' + d I)^-1 R b) / d` with `R' R = G`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.bench.products import Exact, Product
from benchmarks.rivals.given import Given

WANTED, MOST, EVERY = 1e-10, 1000, 25
SYSTEM = re.compile(r"([HG])(\^2)? \+ ([-+.\de]+)$")


@final
@dataclass(frozen=True, eq=False)
class Reference:
    """One system's solutions `[parameters, queries]`, scores `[queries, examples]` and worst relative residual."""

    system: str
    solution: Tensor
    scores: Tensor
    residual: float


@final
class References:
    """Those of one input, computed when they are first asked for and kept in a folder."""

    def __init__(self, given: Given, name: str, folder: Path) -> None:
        self.given, self.name, self.folder = given, name, folder
        self._exact: Exact | None = None
        self._krylov: dict[str, Krylov] = {}

    def of(self, system: str) -> Reference | None:
        """None for a system that is not one of `H + d`, `G + d`, `H^2 + d`."""
        if not SYSTEM.match(system):
            return None
        path = self.folder / f"{self.name} {system}.safetensors"
        if not path.exists():
            found = self._one(system) if self.given.settings.mean else self._many(system)
            path.parent.mkdir(parents=True, exist_ok=True)
            tensors = {"solution": found.solution.contiguous(), "scores": found.scores.contiguous()}
            save_file(tensors, path, {"residual": repr(found.residual)})
        with safe_open(path, "pt") as file:
            residual = float(file.metadata()["residual"])
            return Reference(system, file.get_tensor("solution"), file.get_tensor("scores"), residual)

    @property
    def exact(self) -> Exact:
        if self._exact is None:
            self._exact = Exact(self.given)
        return self._exact

    def _one(self, system: str) -> Reference:
        matrix, squared, damping = SYSTEM.match(system).groups()  # pyright: ignore[reportOptionalMemberAccess]
        if matrix not in self._krylov:
            product = self.exact.hessian if matrix == "H" else self.exact.gauss_newton
            self._krylov[matrix] = Krylov(product, self.exact.query())
        x, residual = self._krylov[matrix].solved(float(damping), squared=bool(squared))
        return Reference(system, x[:, None], self.exact.scores(x[:, None]), residual)

    def _many(self, system: str) -> Reference:
        matrix, squared, damping = SYSTEM.match(system).groups()  # pyright: ignore[reportOptionalMemberAccess]
        if matrix != "G" or squared:
            raise ValueError(f"{system}: many queries have a reference of Gauss-Newton systems alone")
        exact, d = self.exact, float(damping)
        b = exact.each_gradient(*self.given.tests.tensors).mT
        rows = exact.rows()
        gram = rows @ rows.mT
        gram.diagonal().add_(d)
        x = (b - rows.mT @ torch.cholesky_solve(rows @ b, torch.linalg.cholesky(gram))) / d
        few = range(min(3, b.shape[1]))
        residual = max(
            float((b[:, i] - exact.gauss_newton(x[:, i]) - d * x[:, i]).norm() / b[:, i].norm()) for i in few
        )
        return Reference(system, x, exact.scores(x), residual)


@final
class Krylov:
    """The Krylov space of one matrix and right-hand side, `matrix Q = Q+ T`."""

    def __init__(self, product: Product, b: Tensor) -> None:
        self.product, self.b = product, b
        self.basis = [b / b.norm()]
        self.t = torch.zeros(MOST + 1, MOST, dtype=b.dtype)

    def solved(self, damping: float, *, squared: bool) -> tuple[Tensor, float]:
        """The solution and its relative residual, by true products."""
        while True:
            if len(self.basis) > 1:
                x = self._within(damping, squared)
                residual = self._residual(x, damping, squared)
                if residual <= WANTED or len(self.basis) > MOST:
                    return x, residual
            self._grow(min(EVERY, MOST + 1 - len(self.basis)))

    def _grow(self, steps: int) -> None:
        for _ in range(steps):
            k = len(self.basis) - 1
            q = torch.stack(self.basis)
            v = self.product(self.basis[-1])
            self.t[k, k] = self.basis[-1] @ v
            for _ in range(2):
                v = v - q.mT @ (q @ v)
            self.t[k + 1, k] = v.norm()
            if k + 1 < MOST:
                self.t[k, k + 1] = v.norm()
            self.basis.append(v / v.norm())

    def _within(self, damping: float, squared: bool) -> Tensor:
        m = len(self.basis) - 1
        whole, size = self.t[: m + 1, :m], self.b.norm()
        right = torch.zeros(m + 1, dtype=self.b.dtype)
        right[0] = size
        unit = torch.eye(m, dtype=self.b.dtype)
        if squared:
            y = torch.linalg.solve(whole.mT @ whole + damping * unit, whole.mT @ right)
        else:
            y = torch.linalg.solve(whole[:m] + damping * unit, right[:m])
        return torch.stack(self.basis[:m]).mT @ y

    def _residual(self, x: Tensor, damping: float, squared: bool) -> float:
        if squared:
            right = self.product(self.b)
            return float((right - self.product(self.product(x)) - damping * x).norm() / right.norm())
        return float((self.b - self.product(x) - damping * x).norm() / self.b.norm())
