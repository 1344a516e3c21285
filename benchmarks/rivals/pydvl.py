"""pyDVL 0.10.0: conjugate gradients, the Nyström sketch, and EK-FAC.

It takes queries one example at a time. For the mean of many, its documented way would be a solve for each: the operator
inside is used for one solve. Its conjugate gradients square their tolerance, so they run to their limit. EK-FAC does
not know convolutions, which are frozen for it.
"""

# The other library is in an environment of its own.
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from pydvl.influence.torch import CgInfluence, EkfacInfluence, NystroemSketchInfluence
from pydvl.influence.torch.operator import CgOperator
from pydvl.influence.torch.util import SecondOrderMode
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.rivals.given import Given
from benchmarks.rivals.process import Found, Spent, command

RANK = 100


def solved(made: Callable[[Given], Any], products: int | None, exact: bool) -> Any:
    """The one query: the operator of the only block, applied to the mean gradient."""

    def run(given: Given, spent: Spent) -> Found:
        counted = _Counted()
        with spent.on("fit"):
            model = made(given).fit(DataLoader(given.curvature, batch_size=len(given.chosen)))
            gradient = torch.cat([g.flatten() for g in given.query_gradient()])
            operator = model.block_mapper.composable_block_dict[next(iter(model.block_names))].op
            factors = operator.apply(gradient).reshape(1, -1).detach()
        with spent.on("score"):
            scores = _scores(given, model, factors)
        system = f"H + {given.settings.damping:g}"
        return Found(
            scores,
            given.parameters,
            system if exact else None,
            None if exact else system,
            solution=factors.mT if exact else None,
            products=products or counted.products,
            notes=() if exact else (f"rank {RANK}",),
        )

    return run


def cg(given: Given) -> Any:
    settings = given.settings
    return CgInfluence(
        given.model,
        F.cross_entropy,
        rtol=settings.rtol,
        maxiter=settings.most,
        regularization=settings.damping,
        second_order_mode=SecondOrderMode.HESSIAN,
    )


def nystroem(given: Given) -> Any:
    return NystroemSketchInfluence(
        given.model,
        F.cross_entropy,
        rank=RANK,
        regularization=given.settings.damping,
        second_order_mode=SecondOrderMode.HESSIAN,
    )


def ekfac(given: Given, spent: Spent) -> Found:
    """EK-FAC with corrected eigenvalues, in the linear layers."""
    for module in given.model.modules():
        if isinstance(module, nn.Conv2d):
            module.requires_grad_(False)
    free = [p for p in given.model.parameters() if p.requires_grad]
    inputs, labels = given.tests.tensors
    with spent.on("fit"):
        model = EkfacInfluence(given.model, update_diagonal=True, hessian_regularization=given.settings.damping)
        model = model.fit(DataLoader(given.curvature, batch_size=len(given.chosen)))
        if given.settings.mean:
            gradients = torch.autograd.grad(given.losses(given.model, (inputs, labels)).mean(), free)
            factors = model._solve_hvp(torch.cat([g.flatten() for g in gradients])[None])
        else:
            factors = model.influence_factors(inputs, labels)
    with spent.on("score"):
        scores = _scores(given, model, factors)
    covers = sum(p.numel() for p in free)
    approximates = f"G + {given.settings.damping:g}"
    return Found(scores, covers, approximates=approximates, notes=("linear layers only",))


def _scores(given: Given, model: Any, factors: Tensor) -> Tensor:
    batches = zip(*(part.split(given.settings.batch) for part in given.train.tensors), strict=True)
    found = [model.influences_from_factors(factors, *batch).detach() for batch in batches]
    return -torch.cat(found, dim=1)  # its sign: positive where the example helps


class _Counted:
    """Counts the products of conjugate gradients."""

    def __init__(self) -> None:
        self.products, inner = 0, CgOperator._reg_operator_apply

        def counting(operator: Any, vector: Tensor) -> Tensor:
            self.products += 1
            return inner(operator, vector)

        CgOperator._reg_operator_apply = counting


if __name__ == "__main__":
    methods = {
        "CG, Hessian": solved(cg, None, exact=True),
        "Nyström, Hessian": solved(nystroem, RANK, exact=False),
        "EK-FAC": ekfac,
    }
    command("pydvl", methods)
