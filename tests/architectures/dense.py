"""Scores of two stages from dense float64 matrices: nothing here comes from the library.

Both stages are the same model on the same rows, and the second is pulled back to the first in all its parameters, so
one Hessian H of the mean loss and the gradients G of the examples serve both. With b the mean gradient, which is the
query's, and f(A, c) the x of (A^2 + damping I) x = A c:

    x_after = f(H + 2 alpha I, b),   x_before = f(H, 2 alpha x_after),   scores = -G x
"""

import copy
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from stagetrace import Chain, Hessian, Identity, Proximal, Query, trace
from stagetrace.solvers import Lanczos
from tests.architectures.zoo import Case

ALPHA, DAMPING = 0.5, 1.0
AT_ONCE, STEP = 64, 5e-4


def by_differences(case: Case, model: nn.Module) -> Tensor:
    """Central differences of fourth order of the gradients: no rule for a second derivative is needed."""
    centre = parameters_to_vector(model.parameters()).detach()

    def gradient(at: Tensor) -> Tensor:
        moved = copy.deepcopy(model)
        vector_to_parameters(at, moved.parameters())
        return case.gradients(moved).mean(dim=0)

    columns = []
    for along in STEP * torch.eye(len(centre), dtype=torch.float64):
        near = gradient(centre + along) - gradient(centre - along)
        far = gradient(centre + 2 * along) - gradient(centre - 2 * along)
        columns.append((8 * near - far) / (12 * STEP))
    return torch.stack(columns)


@contextmanager
def without_mkldnn() -> Generator[None]:
    before, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def by_backward_twice(case: Case, model: nn.Module) -> Tensor:
    """Reverse mode over reverse mode, many entries of the gradient at a time, with kernels that have both."""
    parameters = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH), without_mkldnn(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # operations that PyTorch batches by a loop
        mean = torch.stack([case.loss(model, row) for row in case.rows]).mean()
        pieces = torch.autograd.grad(mean, parameters, create_graph=True, materialize_grads=True)
        gradient = torch.cat([piece.reshape(-1) for piece in pieces])
        blocks = []
        for units in torch.eye(len(gradient), dtype=torch.float64).split(AT_ONCE):
            rows = torch.autograd.grad(
                gradient, parameters, units, is_grads_batched=True, retain_graph=True, materialize_grads=True
            )
            blocks.append(torch.cat([row.reshape(len(units), -1) for row in rows], dim=1))
    return torch.cat(blocks)


_OF_FAMILIES: dict[str, Tensor] = {}


def hessian(case: Case) -> Tensor:
    """Of the mean loss, `[size, size]`, without a derivative for the vectors of padding.

    By differences where PyTorch has no second derivative, or one that is not symmetric and so not one. Once for models
    that are one function by different kernels.
    """
    family = case.family or case.name
    if family not in _OF_FAMILIES:
        _OF_FAMILIES[family] = _hessian(case)
    return _OF_FAMILIES[family]


def _hessian(case: Case) -> Tensor:
    model = case.model()
    for module in model.modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            module.sparse = False  # a way to store a gradient, which a second derivative cannot follow
    try:
        full = by_backward_twice(case, model)
    except RuntimeError:
        full = by_differences(case, model)
    if float((full - full.mT).abs().max()) > 1e-6 * float(full.abs().max()):
        full = by_differences(case, model)
    kept = (case.gradients().abs().sum(dim=0) > 0).double()
    return kept.unsqueeze(1) * full * kept


def solved(matrix: Tensor, vector: Tensor) -> Tensor:
    return torch.linalg.solve(matrix @ matrix + DAMPING * torch.eye(len(matrix)).double(), matrix @ vector)


def expected(case: Case) -> dict[str, Tensor]:
    gradients = case.gradients()
    unit = torch.eye(gradients.shape[1], dtype=torch.float64)
    H = hessian(case) if case.second else torch.zeros_like(unit)
    along = 2 * ALPHA
    if case.second:
        after = solved(H + along * unit, gradients.mean(dim=0))
        before = solved(H, along * after)
    else:  # gradient dot products: the identity stands for all curvature
        after = gradients.mean(dim=0) / (1 + DAMPING)
        before = along * after / (1 + DAMPING)
    return {"before": -gradients @ before, "after": -gradients @ after}


def traced(case: Case, device: str = "cpu") -> dict[str, Tensor]:
    before, after = case.stage(case.model().to(device), name="before"), case.model().to(device)
    chain = Chain(before, case.stage(after, name="after", link=Proximal("", alpha=ALPHA)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the models are not trained, and some compute in float32 inside
        result = trace(
            chain,
            Query(case.rows, collate=case.collate, reduction="mean"),
            curvature=Hessian() if case.second else Identity(),
            solver=Lanczos(damping=DAMPING, rtol=1e-11),
        )
    return {name: result[name].values for name in ("before", "after")}


@cache
def error(case: Case) -> float:
    """The largest error of a score, over the largest score of its stage."""
    found, right = traced(case), expected(case)
    return max(float((found[name] - right[name]).abs().max() / right[name].abs().max()) for name in right)
