"""curvlinops 3.0.1 (Dangel et al. 2025): linear operators, their inverses, and no scores, which `scoring.py` makes.

Conjugate gradients run on the damped matrix as its documentation shows; on an indefinite one nothing warns. Its EK-FAC
covers every parameter of the network.
"""

# The other library is in an environment of its own.
# pyright: reportMissingImports=false, reportCallIssue=false

from typing import Any

import torch
from curvlinops import (
    CGInverseLinearOperator,
    EKFACLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
    KFACInverseLinearOperator,
)
from curvlinops.examples import IdentityLinearOperator
from torch import Tensor, nn

from benchmarks.rivals.given import Given
from benchmarks.rivals.process import Found, Spent, command
from benchmarks.rivals.scoring import by_gradients, by_jvp, each_query


def conjugate_gradients(kind: Any, letter: str) -> Any:
    """`(matrix + damping I) x = b` for the one query."""

    def run(given: Given, spent: Spent) -> Found:
        settings = given.settings
        weights = list(given.model.parameters())
        inputs, labels = given.curvature_batch
        with spent.on("fit"):
            matrix = kind(given.model, nn.CrossEntropyLoss(), weights, [(inputs, labels)])
            counted = _Counted(matrix)
            shapes = [tuple(p.shape) for p in weights]
            identity = IdentityLinearOperator(shapes, matrix.device, matrix.dtype)
            solver = CGInverseLinearOperator(
                matrix + settings.damping * identity,
                max_iter=settings.most,
                max_tridiag_iter=settings.most,
                tolerance=settings.rtol,
                eps=0,
                stop_updating_after=1e-10,
            )
            solution = (solver @ torch.cat([g.flatten() for g in given.query_gradient()])).detach()
        with spent.on("score"):
            scores = by_jvp(given, solution)
        system = f"{letter} + {settings.damping:g}"
        return Found(scores, given.parameters, system, solution=solution[:, None], products=counted.products)

    return run


def ekfac(given: Given, spent: Spent) -> Found:
    """Its EK-FAC, fitted with labels drawn from the model, damped and inverted."""
    weights = list(given.model.parameters())
    inputs, labels = given.curvature_batch
    with spent.on("fit"):
        loss = nn.CrossEntropyLoss()
        matrix = EKFACLinearOperator(given.model, loss, weights, [(inputs, labels)], fisher_type="mc")
        inverse = KFACInverseLinearOperator(matrix, damping=given.settings.damping, use_exact_damping=True)
        solutions: Tensor = (inverse @ each_query(given)).detach()
    with spent.on("score"):
        scores = by_jvp(given, solutions[:, 0]) if solutions.shape[1] == 1 else by_gradients(given, solutions)
    return Found(scores, given.parameters, approximates=f"G + {given.settings.damping:g}")


class _Counted:
    """Counts an operator's products with single vectors."""

    def __init__(self, matrix: Any) -> None:
        self.products, self.inner = 0, matrix._matmat
        matrix._matmat = self

    def __call__(self, vectors: list[Tensor]) -> Any:
        self.products += vectors[0].shape[-1]
        return self.inner(vectors)


if __name__ == "__main__":
    methods = {
        "CG, Hessian": conjugate_gradients(HessianLinearOperator, "H"),
        "CG, GGN": conjugate_gradients(GGNLinearOperator, "G"),
        "EK-FAC": ekfac,
    }
    command("curvlinops-for-pytorch", methods)
