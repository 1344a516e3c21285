"""Scores of all examples from solutions, in plain PyTorch: what a user writes around a library that only solves."""

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from benchmarks.rivals.given import Given


def by_jvp(given: Given, solution: Tensor) -> Tensor:
    """Scores `[1, examples]` of one solution `[parameters]`: minus each loss's derivative along it."""
    names = {name: p.detach() for name, p in given.model.named_parameters()}
    parts = solution.detach().split([p.numel() for p in names.values()])
    along = {name: part.view_as(p) for (name, p), part in zip(names.items(), parts, strict=True)}
    found: list[Tensor] = []
    for batch in zip(*(part.split(given.settings.batch) for part in given.train.tensors), strict=True):
        slope = jvp(lambda w, batch=batch: given.losses(_At(given.model, w), batch), (names,), (along,))[1]
        found.append(-slope)
    return torch.cat(found)[None]


def by_gradients(given: Given, solutions: Tensor, batch: int = 256) -> Tensor:
    """Scores `[queries, examples]` of solutions `[parameters, queries]`: each example's gradient, then a product."""
    names = {name: p.detach() for name, p in given.model.named_parameters()}

    def loss(weights: dict[str, Tensor], *example: Tensor) -> Tensor:
        return given.losses(_At(given.model, weights), [part[None] for part in example]).squeeze(0)

    each = vmap(grad(loss), (None, *([0] * len(given.train.tensors))))
    found: list[Tensor] = []
    for parts in zip(*(part.split(batch) for part in given.train.tensors), strict=True):
        gradients = each(names, *parts)
        rows = torch.cat([gradients[name].flatten(1) for name in names], dim=1)
        found.append(-(rows @ solutions))
    return torch.cat(found).mT


def each_query(given: Given) -> Tensor:
    """Gradients of the queries, `[parameters, queries]`: of the mean of all, or of each."""
    if given.settings.mean:
        return torch.cat([g.flatten() for g in given.query_gradient()])[:, None]
    names = {name: p.detach() for name, p in given.model.named_parameters()}

    def loss(weights: dict[str, Tensor], *example: Tensor) -> Tensor:
        return given.losses(_At(given.model, weights), [part[None] for part in example]).squeeze(0)

    each = vmap(grad(loss), (None, *([0] * len(given.tests.tensors))))
    gradients = each(names, *given.tests.tensors)
    return torch.cat([gradients[name].flatten(1) for name in names], dim=1).mT


class _At(nn.Module):
    """A model at other weights."""

    def __init__(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.inner, self.weights = [model], weights

    def forward(self, inputs: Tensor) -> Tensor:
        return functional_call(self.inner[0], self.weights, (inputs,))
