"""Derivatives of a batch's token losses along adjoints: `(d loss_it / d theta) . lambda` for every token at once.

Two ways, both exact, each tried on a few examples and compared with plain autograd before it is used:

    forward mode     the directional derivative of all token losses by one tangent through the forward pass
    backward twice   with cotangents c of the token losses, g(c) = sum_it c_it (d loss_it / d theta) is linear in c, so
                     that d(g(c) . lambda) / dc is the same derivative; for operations that have no forward mode
"""

from typing import Literal

import torch
from torch import Tensor

from stagetrace.errors import DifferentiationError, StagetraceError, first_line, refuse
from stagetrace.objectives.objective import TokenLosses, by_token, name_of
from stagetrace.objectives.tokens import IGNORED
from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk
from stagetrace.stages.tangent import directional
from stagetrace.tracing.contract import DISAGREEMENT

__all__ = ["TokenWay", "check_sums", "token_derivatives", "token_way"]

TokenWay = Literal["forward mode, token by token", "backward twice, token by token"]

WAYS: tuple[TokenWay, ...] = ("forward mode, token by token", "backward twice, token by token")

UNEQUAL = 1e-4
"""Over the losses: how far the sum of token losses may be from the losses; more in half precision."""


def token_derivatives(way: TokenWay, risk: Risk, batch: Batch, adjoints: Tensor) -> tuple[Tensor, Tensor]:
    """Token losses `[batch, length]` and their derivatives `[batch, length, k]` along each adjoint `[size, k]`."""
    along = [risk.trained.unflatten(adjoint) for adjoint in adjoints.unbind(1)]
    if way == "backward twice, token by token":
        return _backward_twice(risk, batch, along)

    def losses_at(trained: dict[str, Tensor]) -> Tensor:
        return risk.token_losses(trained, risk.inherited_values, batch)

    with torch.no_grad():
        found = [directional(losses_at, risk.trained_values, direction) for direction in along]
    return found[0][0], torch.stack([dots for _, dots in found], dim=2)


def _backward_twice(risk: Risk, batch: Batch, along: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    trained = {name: value.detach().requires_grad_() for name, value in risk.trained_values.items()}
    with torch.enable_grad():
        losses = risk.token_losses(trained, risk.inherited_values, batch)
        cotangents = torch.zeros_like(losses, requires_grad=True)
        slopes = torch.autograd.grad(
            losses, list(trained.values()), cotangents, create_graph=True, materialize_grads=True
        )
        named = dict(zip(trained, slopes, strict=True))
        products = [sum((named[n] * direction[n]).sum() for n in named) for direction in along]
    dots = [
        torch.autograd.grad(product, cotangents, retain_graph=True, materialize_grads=True)[0]
        for product in products
        if isinstance(product, Tensor)
    ]
    return losses.detach(), torch.stack(dots, dim=2)


def token_way(risk: Risk, probe: Batch) -> TokenWay:
    """The way that gives plain autograd's derivatives on the probe.

    Raises:
        DescriptionError: the objective has no token losses, or they do not add up to its losses.
        DifferentiationError: neither way works; says what PyTorch says.
    """
    if not isinstance(risk.objective, TokenLosses):
        by_token(risk.objective)
    exact = risk.exact
    check_sums(exact, probe)
    failed = list[str]()
    for way in WAYS:
        failure = _failure(way, exact, probe)
        if failure is None:
            return way
        failed.append(f"{way.partition(',')[0]}: {failure}")
    raise DifferentiationError(
        f"{risk.where}: scores of single tokens need a derivative that an operation of the model or loss lacks "
        f"({'; '.join(failed)}); replace that operation, or leave tokens= out"
    )


def check_sums(risk: Risk, probe: Batch) -> None:
    """Refuse token losses that are not terms of the losses, or lie where no token is predicted.

    Raises:
        DescriptionError: the objective has none, or they do not add up.
    """
    with torch.no_grad():
        each = risk.token_losses(risk.trained_values, risk.inherited_values, probe)
        losses = risk.losses(risk.trained_values, risk.inherited_values, probe)
    predicted = by_token(risk.objective).predicted(probe.content)
    if predicted.shape != each.shape:
        refuse(
            f"{risk.where}: the objective {name_of(risk.objective)} gives token losses {list(each.shape)} and "
            f"predicted tokens {list(predicted.shape)}; both must be [batch, length]"
        )
    sums = (each * (predicted != IGNORED)).sum(dim=1)
    apart = (sums - losses).abs().max()
    allowed = max(UNEQUAL, torch.finfo(each.dtype).eps ** 0.5) * (1 + losses.abs().max())
    if not bool(apart <= allowed):
        refuse(
            f"{risk.where}: the token losses of the objective {name_of(risk.objective)} do not add up to its losses "
            f"(they differ by {float(apart):.2g}); correct its token_losses or predicted, or leave tokens= out"
        )


def _failure(way: TokenWay, risk: Risk, probe: Batch) -> str | None:
    """None if the way gives the derivatives of autograd; otherwise what is wrong.

    Both are compared for sums of token losses with drawn coefficients, so that each token is looked at.
    """
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(risk.trained.size, 1, generator=generator).to(risk.trained.device, risk.trained.dtype)
    try:
        dots = token_derivatives(way, risk, probe, direction)[1][:, :, 0]
    except StagetraceError:
        raise
    except (RuntimeError, NotImplementedError) as cause:
        return first_line(cause)
    allowed = max(DISAGREEMENT, risk.rounding**0.5)
    drawn = torch.randn(dots.shape, generator=generator).to(dots)
    for row, coefficients in enumerate(drawn):
        gradient = _gradient(risk, probe, row, coefficients)
        found, expected = (dots[row] * coefficients).sum(), gradient @ direction[:, 0]
        if not bool((found - expected).abs() <= allowed * torch.linalg.vector_norm(gradient)):
            return "it gives another derivative than plain autograd"
    return None


def _gradient(risk: Risk, batch: Batch, row: int, coefficients: Tensor) -> Tensor:
    """The gradient of a sum of one example's token losses with coefficients `[length]`: `[trained.size]`."""
    trained = {name: value.detach().requires_grad_() for name, value in risk.trained_values.items()}
    with torch.enable_grad():
        losses = risk.token_losses(trained, risk.inherited_values, batch)
        total = (losses[row] * coefficients).sum()
        if not total.requires_grad:
            return risk.trained.zeros(1).squeeze(1)
        slopes = torch.autograd.grad(total, list(trained.values()), materialize_grads=True)
    return risk.trained.flatten(dict(zip(trained, (s.to_dense() if s.is_sparse else s for s in slopes), strict=True)))
