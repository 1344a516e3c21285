"""Slow, obvious truths for the scores: stages really solved again, and the implicit function theorem on dense matrices.

Nothing here comes from the library. All arithmetic is float64, all Hessians are dense, and a chain is a `ChainCase`
of `chains.py`: per stage a module, tensors `x` and `y`, the name of a loss, a weight decay and a link.

Stage k minimises over its own parameters v, with p the previous stage's parameters,

    F(v; p) = sum_i w_i loss_i(v, p) + weight_decay / 2 |v|^2 + sum_j a_j (v_j - p_j)^2,   w_i = 1/n,

the last sum (without a half) over what a link holds near where it started. A frozen link, or `requires_grad=False` on a
shared layer, takes the layer from p instead of from v. The score of example i of stage k is dq/d(w_i), with q the query
loss at the last stage's parameters, and with stage k and all later stages solved again.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacrev, vmap

if TYPE_CHECKING:
    from tests.chains import ChainCase, StageCase

Point = dict[str, Tensor]
"""All parameters of one stage, by name."""


def squared_factor(outputs: int) -> float:
    """`c` in a regression loss `c * sum over outputs of (output - target)^2`: the mean over the outputs."""
    return 1 / outputs


# The objective of a stage


def losses(stage: "StageCase", point: Point, x: Tensor, y: Tensor) -> Tensor:
    """The loss of each example, `[n]`: mean squared error, or `log sum exp(outputs) - outputs[label]`."""
    outputs = functional_call(stage.model(), point, (x,))
    if stage.loss == "squared":
        return squared_factor(y.shape[1]) * (outputs - y).square().sum(dim=1)
    return outputs.logsumexp(dim=1) - outputs.gather(1, y.unsqueeze(1)).squeeze(1)


@cache
def previous_names(stage: "StageCase") -> dict[str, Any]:
    """This stage's shared parameters, each with the previous stage's name of it, or the `Merge` that it came from."""
    found = {}
    for here, there in stage.link.shared.items() if stage.link else ():
        for name in stage.initial():
            if name == here or name.startswith(here + "."):
                found[name] = there if isinstance(there, tuple) else there + name[len(here) :]
    return found


def came_from(there: Any, previous: Point) -> Tensor:
    """Where a shared parameter started, at these values of the previous stage."""
    return there[1](*(previous[name] for name in there[0])) if isinstance(there, tuple) else previous[there]


@cache
def kept_names(stage: "StageCase") -> dict[str, Any]:
    """The shared parameters that stay at the previous stage's value, each with its name there."""
    return {here: there for here, there in previous_names(stage).items() if stage.link.keeps or not stage.trains(here)}


@cache
def own_names(stage: "StageCase") -> list[str]:
    """The parameters that this stage is minimised over."""
    return [name for name in stage.initial() if stage.trains(name) and name not in kept_names(stage)]


@cache
def held_names(stage: "StageCase") -> dict[str, Any]:
    """The shared parameters that the stage moves, each with its name in the previous stage."""
    return {here: there for here, there in previous_names(stage).items() if here in own_names(stage)}


def shares_all(case: "ChainCase") -> bool:
    """Whether the second stage shares every parameter that the first one trained."""
    return set(own_names(case.stages[0])) <= set(previous_names(case.stages[1]).values())


def flatten(point: Point, names: list[str]) -> Tensor:
    return torch.cat([point[name].reshape(-1) for name in names])


def unflatten(vector: Tensor, like: Point, names: list[str]) -> Point:
    pieces = vector.split([like[name].numel() for name in names])
    return {name: piece.reshape(like[name].shape) for name, piece in zip(names, pieces, strict=True)}


def complete(stage: "StageCase", own: Tensor, previous: Point) -> Point:
    """All parameters of the stage: its constants, what it kept of the previous stage, and its own."""
    point = dict(stage.initial())
    point.update({here: came_from(there, previous) for here, there in kept_names(stage).items()})
    point.update(unflatten(own, point, own_names(stage)))
    return point


def objective(
    stage: "StageCase", own: Tensor, previous: Point, weights: Tensor, *, decay: float = 1.0, pull: float = 1.0
) -> Tensor:
    """`F(v; p)` as above; `decay` and `pull` scale its two penalties, for controls that get them wrong."""
    point = complete(stage, own, previous)
    value = weights @ losses(stage, point, stage.x, stage.y)
    value = value + decay * stage.weight_decay / 2 * own.square().sum()
    for here, there in held_names(stage).items():
        away = point[here] - came_from(there, previous)
        value = value + pull * (stage.link.strengths(away.shape) * away.square()).sum()
    return value


def mean_weights(stage: "StageCase") -> Tensor:
    """`1/n` for every example of the stage."""
    return torch.full((len(stage.x),), 1 / len(stage.x), dtype=torch.float64)


# Solving


def minimise(function: Callable[[Tensor], Tensor], start: Tensor, tolerance: float = 1e-14, steps: int = 500) -> Tensor:
    """A strict local minimum, by Newton steps with the absolute eigenvalues and backtracking.

    Stops at `|gradient| <= tolerance`, or where rounding keeps the gradient from falling further, and then
    insists on `|gradient| <= 1e-13` and on a positive definite Hessian.
    """
    point = start
    for _ in range(steps):
        gradient = grad(function)(point)
        if gradient.norm() <= tolerance:
            break
        values, vectors = torch.linalg.eigh(hessian(function)(point))
        step = -vectors @ ((vectors.T @ gradient) / values.abs().clamp_min(1e-8))
        if gradient.norm() > 1e-6:
            length = 1.0
            while function(point + length * step) > function(point) + 1e-4 * length * (gradient @ step):
                length /= 2
            point = point + length * step
        elif grad(function)(point + step).norm() < gradient.norm():
            point = point + step
        else:
            break
    assert grad(function)(point).norm() <= 1e-13
    assert torch.linalg.eigvalsh(hessian(function)(point))[0] > 0
    return point


@lru_cache
def solved(case: "ChainCase") -> tuple[Point, ...]:
    """Every stage solved in turn, each started at the previous stage's values of what they share."""
    points: list[Point] = []
    previous: Point = {}
    for stage in case.stages:
        start = dict(stage.initial())
        start.update({here: came_from(there, previous) for here, there in previous_names(stage).items()})
        own = minimise(
            lambda own, stage=stage, previous=previous: objective(stage, own, previous, mean_weights(stage)),
            flatten(start, own_names(stage)),
        )
        previous = complete(stage, own, previous)
        points.append(previous)
    return tuple(points)


def own_solution(case: "ChainCase", position: int) -> tuple[Tensor, Point]:
    """The stage's own parameters at its solution, and the previous stage's parameters."""
    points = solved(case)
    return flatten(points[position], own_names(case.stages[position])), points[position - 1] if position else {}


def newton(case: "ChainCase", position: int, previous: Point, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Own parameters `[m, own]` of a stage with weights `[m, n]`, each after another previous stage; gradient norms.

    Newton's method from the solution with equal weights. Near a minimum the error is squared with every step, so the
    last one starts from a gradient below 1e-9.
    """
    stage = case.stages[position]

    def slope(own: Tensor, previous: Point, weights: Tensor) -> Tensor:
        return grad(lambda own: objective(stage, own, previous, weights))(own)

    def step(own: Tensor, previous: Point, weights: Tensor) -> Tensor:
        curvature = hessian(lambda own: objective(stage, own, previous, weights))(own)
        return own - torch.linalg.solve(curvature, slope(own, previous, weights))

    own = own_solution(case, position)[0].expand(len(weights), -1)
    for _ in range(30):
        near = bool(vmap(slope)(own, previous, weights).norm(dim=1).max() <= 1e-9)
        own = vmap(step)(own, previous, weights)
        if near:
            break
    return own, vmap(slope)(own, previous, weights).norm(dim=1)


# The truth: a difference quotient of the query loss


def query_losses(case: "ChainCase", point: Point) -> Tensor:
    """The loss of each query example at the last stage's parameters, `[q]`, without penalties."""
    return losses(case.stages[-1], point, case.query_x, case.query_y)


@contextmanager
def one_thread() -> Generator[None, None, None]:
    """Thousands of tiny operations: handing each to several threads takes several times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def solved_again(case: "ChainCase", position: int, weights: Tensor) -> Tensor:
    """The query losses `[..., q]` after stage `position` and all later ones are solved with weights `[..., n]`."""
    copies = weights.reshape(-1, weights.shape[-1])
    previous = {name: p.expand(len(copies), *p.shape) for name, p in own_solution(case, position)[1].items()}
    with one_thread():
        for later in range(position, len(case.stages)):
            stage = case.stages[later]
            now = copies if later == position else mean_weights(stage).expand(len(copies), -1)
            own, gradients = newton(case, later, previous, now)
            assert gradients.max() <= 1e-13
            previous = vmap(lambda own, previous, stage=stage: complete(stage, own, previous))(own, previous)
        queries = vmap(lambda point: query_losses(case, point))(previous)
    return queries.reshape(*weights.shape[:-1], -1)


@lru_cache
def truth(case: "ChainCase", position: int, h: float = 5e-5) -> Tensor:
    """dq/d(epsilon) `[q, n]` for each example of a stage, every query example a row; by solving the stages again.

    The central difference of fourth order, `(8 (q(h) - q(-h)) - (q(2h) - q(-2h))) / 12h`.
    """
    equal = mean_weights(case.stages[position])
    shifts = h * torch.tensor([1.0, -1.0, 2.0, -2.0], dtype=torch.float64)
    weights = equal + shifts.view(4, 1, 1) * torch.eye(len(equal), dtype=torch.float64)  # [4, n (shifted), n]
    plus, minus, plus_two, minus_two = solved_again(case, position, weights)  # [n, q] each
    return ((8 * (plus - minus) - (plus_two - minus_two)) / (12 * h)).T


# The implicit function theorem on dense blocks


@dataclass(frozen=True)
class Slip:
    """A mistake to be made on purpose in `influences`; each factor is 1 in the right formula."""

    mixed: float = 1.0  # of the mixed second derivative d2F/dv dp
    direct: float = 1.0  # of what reaches the next stage's parameters by being kept
    decay: float = 1.0  # of the weight decay in the Hessian
    pull: float = 1.0  # of 2 a in the Hessian and in the mixed derivative
    joint: bool = True  # whether [.]_W is taken after the inverse over all own parameters (else W's block is inverted)


RIGHT = Slip()


@lru_cache
def example_gradients(case: "ChainCase", position: int) -> Tensor:
    """The gradient of each example's loss in the stage's own parameters, `[own, n]`, without penalties."""
    stage = case.stages[position]
    own, previous = own_solution(case, position)
    return jacrev(lambda own: losses(stage, complete(stage, own, previous), stage.x, stage.y))(own).T


@lru_cache
def stage_hessian(case: "ChainCase", position: int, decay: float = 1.0, pull: float = 1.0) -> Tensor:
    """`d2F/dv2`, `[own, own]`, penalties included."""
    stage = case.stages[position]
    own, previous = own_solution(case, position)
    return hessian(lambda own: objective(stage, own, previous, mean_weights(stage), decay=decay, pull=pull))(own)


@lru_cache
def mixed_derivative(case: "ChainCase", position: int, pull: float = 1.0) -> Tensor:
    """`d2F/dv dp`, `[own, previous]`: the mixed term of a frozen link, `-2 a` on the diagonal of one that pulls."""
    stage = case.stages[position]
    own, previous = own_solution(case, position)
    names = list(previous)

    def gradient(flat: Tensor) -> Tensor:
        point = unflatten(flat, previous, names)
        return grad(lambda own: objective(stage, own, point, mean_weights(stage), pull=pull))(own)

    return jacrev(gradient)(flatten(previous, names))


@lru_cache
def completion(case: "ChainCase", position: int) -> tuple[Tensor, Tensor]:
    """How the stage's full parameters follow its own and the previous stage's: two matrices of zeros and ones."""
    stage = case.stages[position]
    own, previous = own_solution(case, position)
    names = list(previous)

    def full(own: Tensor, flat: Tensor) -> Tensor:
        return flatten(complete(stage, own, unflatten(flat, previous, names)), list(stage.initial()))

    flat = flatten(previous, names) if names else torch.zeros(0, dtype=torch.float64)
    return jacrev(full, argnums=(0, 1))(own, flat)


def first_response(case: "ChainCase", position: int, slip: Slip) -> Tensor:
    """`dv/d(epsilon_i) = - H^-1 grad loss_i`, `[own, n]`; the paper's (10) and (14) are its W rows."""
    curvature, gradients = stage_hessian(case, position, slip.decay, slip.pull), example_gradients(case, position)
    if slip.joint or position + 1 == len(case.stages):
        return -torch.linalg.solve(curvature, gradients)
    shared = mask(case, position, set(previous_names(case.stages[position + 1]).values()))
    response = torch.zeros_like(gradients)
    response[shared] = -torch.linalg.solve(curvature[shared][:, shared], gradients[shared])
    return response


def mask(case: "ChainCase", position: int, names: set[str]) -> Tensor:
    """Which entries of the stage's own parameters belong to `names`."""
    stage = case.stages[position]
    return torch.cat([torch.full((stage.initial()[name].numel(),), name in names) for name in own_names(stage)])


def influences(case: "ChainCase", position: int, slip: Slip = RIGHT) -> Tensor:
    """The derivative of the last stage's full parameters by each example's weight, `[parameters, n]`.

    Forwards through the stages, where the paper's Algorithm 1 goes backwards: (10) or (14) at the example's own
    stage, then at each later stage `dv = - (d2F/dv2)^-1 (d2F/dv dp) dp`, which is (9) for a frozen link and (15)
    for one that pulls.
    """
    response = completion(case, position)[0] @ first_response(case, position, slip)
    for later in range(position + 1, len(case.stages)):
        through_own, through_kept = completion(case, later)
        mixed = slip.mixed * mixed_derivative(case, later, slip.pull)
        own = -torch.linalg.solve(stage_hessian(case, later, slip.decay, slip.pull), mixed @ response)
        response = through_own @ own + slip.direct * (through_kept @ response)
    return response


def dense_parts(case: "ChainCase", position: int, slip: Slip = RIGHT) -> tuple[Tensor, Tensor]:
    """The two terms of (11) and (13), `[q, n]` each: through the last stage's shared parameters, and the rest."""
    last = case.stages[-1]
    response = influences(case, position, slip)
    by_name = unflatten_rows(response, last)
    terms = {name: gradient.flatten(start_dim=1) @ by_name[name] for name, gradient in query_gradients(case).items()}
    nothing = torch.zeros(len(case.query_x), response.shape[1], dtype=torch.float64)
    shared = sum((terms[name] for name in terms if name in previous_names(last)), nothing)
    rest = sum((terms[name] for name in terms if name not in previous_names(last)), nothing)
    return shared, rest


@lru_cache
def query_gradients(case: "ChainCase") -> Point:
    """The gradient of each query loss by the last stage's parameters, `[q, *shape]` by name."""
    return jacrev(lambda point: query_losses(case, point))(solved(case)[-1])


def unflatten_rows(matrix: Tensor, stage: "StageCase") -> dict[str, Tensor]:
    """The rows of a matrix `[parameters, n]` that belong to each parameter of the stage."""
    sizes = [value.numel() for value in stage.initial().values()]
    return dict(zip(stage.initial(), matrix.split(sizes), strict=True))


def dense_scores(case: "ChainCase", position: int, slip: Slip = RIGHT) -> Tensor:
    """dq/d(epsilon), `[q, n]`: the sum of the two parts."""
    shared, rest = dense_parts(case, position, slip)
    return shared + rest


# Ridge regression in two stages by hand


def ridge_by_hand(case: "ChainCase") -> tuple[np.ndarray, np.ndarray]:
    """Scores of both stages of an additive ridge chain, for the mean over the query examples; all linear algebra.

    With A the shared columns, B the others and loss `c |error|^2`, stage 1 solves `min c/n |M P - Y|^2 + d/2 |P|^2`
    for `M = [A B]`, so `P = (2c/n M'M + d I)^-1 2c/n M'Y`, and P's first rows are W. Stage 2 solves the same for its
    head alone with the target `Y - A W` (frozen), or for `[W; T]` with `2 alpha` added to the diagonal at W and
    `2 alpha W_1` to the right-hand side (proximal). Its solution is linear in `W_1`, so the derivative is exact.
    """
    first, second = case.stages
    a = first.model().columns["embedding"][1]
    x1, y1, x2, y2, xq, yq = (t.numpy() for t in (first.x, first.y, second.x, second.y, case.query_x, case.query_y))
    double = 2 * squared_factor(y1.shape[1])
    width = x1.shape[1]
    rows = np.eye(width)[:, :a]  # picks W's rows out of P

    h1 = double / len(x1) * x1.T @ x1 + first.weight_decay * np.eye(width)
    p1 = np.linalg.solve(h1, double / len(x1) * x1.T @ y1)
    if second.link.keeps:
        pad = np.eye(width)[:, a:]  # the head's rows
        b2 = x2 @ pad
        h2 = double / len(x2) * b2.T @ b2 + second.weight_decay * np.eye(width - a)
        head = np.linalg.solve(h2, double / len(x2) * b2.T @ (y2 - x2 @ rows @ p1[:a]))
        p2 = rows @ p1[:a] + pad @ head
        d_p2 = rows - pad @ np.linalg.solve(h2, double / len(x2) * b2.T @ x2 @ rows)  # by W_1
    else:
        pad, pull = np.eye(width), 2 * second.link.alpha
        h2 = double / len(x2) * x2.T @ x2 + second.weight_decay * np.eye(width) + pull * rows @ rows.T
        p2 = np.linalg.solve(h2, double / len(x2) * x2.T @ y2 + pull * rows @ p1[:a])
        d_p2 = np.linalg.solve(h2, pull * rows)

    dq = double / len(xq) * xq.T @ (xq @ p2 - yq)
    scores_1 = [
        -np.sum(dq * (d_p2 @ np.linalg.solve(h1, double * np.outer(x, x @ p1 - y))[:a]))
        for x, y in zip(x1, y1, strict=True)
    ]
    scores_2 = [
        -np.sum(dq * (pad @ np.linalg.solve(h2, pad.T @ (double * np.outer(x, x @ p2 - y)))))
        for x, y in zip(x2, y2, strict=True)
    ]
    return np.array(scores_1), np.array(scores_2)
