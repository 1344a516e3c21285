"""Scores of two stages from dense float64 matrices and transformers' own losses of single sentences.

Nothing here comes from the library: no padding, no batches, no objective, no map of names but the one given. With own
parameters v2 of the second stage, those of the first stage p, and F their objectives,

    a2 = (H2 + 2 alpha P)^-1 dq/dv2                                           P picks the moved parameters
    g  = dq/dp - (d2F2/dv2 dp)' a2  on the kept parameters, 2 alpha P a2 on the moved ones
    a1 = H1^-1 g,   scores = -(gradient of each example's loss) . a

with the L2 term in H1 and H2.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Side:
    """A stage: its model, its features one by one, its L2 coefficient, and the parameters it trained."""

    model: Any
    rows: Sequence[Mapping[str, Any]]
    decay: float
    own: Sequence[str]

    def with_gradients(self) -> "Side":
        model = copy.deepcopy(self.model).double().eval()
        getattr(model, "get_base_model", lambda: model)().set_attn_implementation("eager")  # has second derivatives
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        return Side(model, self.rows, self.decay, self.own)

    def values(self, names: Sequence[str]) -> list[Tensor]:
        parameters = dict(self.model.named_parameters())
        return [parameters[name] for name in names]

    def losses(self, rows: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """The loss that transformers gives each sentence alone."""
        return [self.model(**{key: torch.tensor([value]) for key, value in row.items()}).loss for row in rows]


def flat_gradient(value: Tensor, parameters: Sequence[Tensor], keep: bool = False) -> Tensor:
    pieces = torch.autograd.grad(value, parameters, create_graph=keep, retain_graph=True, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if piece is None else piece).reshape(-1)
            for p, piece in zip(parameters, pieces, strict=True)
        ]
    )


def second_derivatives(side: Side, names: Sequence[str]) -> Tensor:
    """`d2(mean loss)/d(own) d(names)`, `[own, names]`, by differentiating each entry of the gradient."""
    mean, wanted = torch.stack(side.losses(side.rows)).mean(), side.values(names)
    gradient = flat_gradient(mean, side.values(side.own), keep=True)
    rows = torch.eye(len(gradient)).double()
    found = torch.autograd.grad(gradient, wanted, rows, is_grads_batched=True, allow_unused=True)
    return torch.cat(
        [
            torch.zeros(len(gradient), p.numel()).double() if block is None else block.flatten(start_dim=1)
            for p, block in zip(wanted, found, strict=True)
        ],
        dim=1,
    )


def scores(
    first: Side,
    second: Side,
    query: Sequence[Mapping[str, Any]],
    kept: Mapping[str, Any],
    moved: Mapping[str, Any],
    alpha: float,
) -> tuple[Tensor, Tensor]:
    """`[n_first]` and `[n_second]`; `kept` and `moved` are `{second's name: first's}`."""
    one, two = scores_of_chain([first, second], [(kept, moved)], query, alpha)
    return one, two


def scores_of_chain(
    sides: Sequence[Side],
    links: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    query: Sequence[Mapping[str, Any]],
    alpha: float,
) -> list[Tensor]:
    """The scores of each stage, `[n]`; before each stage but the first a link: `kept` and `moved`.

    They map names to the previous stage's, or to `(names, function)` where a start was computed from several.
    """
    sides = [side.with_gradients() for side in sides]
    question = torch.stack(sides[-1].losses(query)).mean()
    everything = [name for name, _ in sides[-1].model.named_parameters()]
    gradient = pieces(flat_gradient(question, sides[-1].values(everything)), sides[-1], everything)
    found: list[Tensor] = []
    for place in reversed(range(len(sides))):
        side, (kept, moved) = sides[place], links[place - 1] if place else ({}, {})
        pull = torch.cat([torch.full((p.numel(),), float(name in moved)) for name, p in named(side, side.own)]).double()
        hessian = second_derivatives(side, side.own) + torch.diag(side.decay + 2 * alpha * pull)
        adjoint = torch.linalg.solve(hessian, torch.cat([gradient[name] for name in side.own]))
        found.insert(0, each(side, adjoint))
        if not place:
            break
        start = {name: piece for name, piece in pieces(2 * alpha * adjoint, side, side.own).items() if name in moved}
        if kept:
            mixed = pieces(second_derivatives(side, list(kept)).T @ adjoint, side, list(kept))
            start |= {name: gradient[name] - mixed[name] for name in kept}
        before = dict(sides[place - 1].model.named_parameters())
        gradient = {name: torch.zeros(p.numel()).double() for name, p in before.items()}
        for name, piece in start.items():
            origin = {**kept, **moved}[name]
            names, function = origin if isinstance(origin, tuple) else ((origin,), lambda value: value)
            jacobians = torch.func.jacrev(function, argnums=tuple(range(len(names))))(*(before[n] for n in names))
            for other, jacobian in zip(names, jacobians, strict=True):
                gradient[other] = gradient[other] + piece @ jacobian.reshape(len(piece), -1)
    return found


def each(side: Side, adjoint: Tensor) -> Tensor:
    return torch.stack([-flat_gradient(loss, side.values(side.own)) @ adjoint for loss in side.losses(side.rows)])


def named(side: Side, names: Sequence[str]) -> list[tuple[str, Tensor]]:
    return list(zip(names, side.values(names), strict=True))


def size(side: Side, names: Sequence[str]) -> int:
    return sum(p.numel() for p in side.values(names))


def pieces(vector: Tensor, side: Side, names: Sequence[str]) -> dict[str, Tensor]:
    return dict(zip(names, vector.split([p.numel() for p in side.values(names)]), strict=True))


def scores_of_one(side: Side, query: Sequence[Mapping[str, Any]]) -> Tensor:
    """`[n]` for a single stage: `-(gradient of each example's loss) . H^-1 dq`."""
    side = side.with_gradients()
    question = torch.stack(side.losses(query)).mean()
    hessian = second_derivatives(side, side.own) + side.decay * torch.eye(size(side, side.own)).double()
    return each(side, torch.linalg.solve(hessian, flat_gradient(question, side.values(side.own))))
