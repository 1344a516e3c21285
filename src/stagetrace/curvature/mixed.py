"""The coupling between a stage and the parameters it inherited: the mixed second derivative, times vectors."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import grad, jvp

from stagetrace.curvature.chunk import check_differentiable_again
from stagetrace.errors import DifferentiationError, first_line
from stagetrace.parallel import world
from stagetrace.progress import Progress, Silent
from stagetrace.stages.data import Batch
from stagetrace.stages.halves import by_halves
from stagetrace.stages.in_step import in_step
from stagetrace.stages.recomputing import kept
from stagetrace.stages.risk import Risk
from stagetrace.stages.shards import differentiating
from stagetrace.stages.space import Params


def mixed_product(risk: Risk, indices: Sequence[int], adjoints: Tensor, progress: Progress | None = None) -> Tensor:
    """`(d2F / dW dTheta) v` for each column v: trained parameters Theta in, inherited parameters W out.

    F is the mean loss over `indices`; penalties do not couple the two. Computed as the gradient in W of
    `<dF/dTheta, v>`, which goes back through W's part of the model once; where an operation's backward has no backward,
    as the derivative, along v, of the gradient in W.

    Args:
        adjoints: `[trained.size, k]`.

    Returns:
        `[inherited.size, k]`.
    """
    total = risk.inherited.zeros(adjoints.shape[1])
    if risk.evaluation.shapes is not None:
        return _in_step(risk, indices, adjoints, progress)
    live = [column for column in range(adjoints.shape[1]) if bool(adjoints[:, column].any())]
    if risk.inherited.size == 0 or not live:
        return total
    mine = world().shard(indices)
    what = f"coupling of {risk.where}"

    def coupled(batch: Batch) -> Tensor:
        rows = [coupling_of(risk, batch, risk.trained.unflatten(adjoints[:, column])) for column in live]
        return torch.stack([risk.inherited.flatten(row) for row in rows], dim=1)

    with (progress or Silent()).task(what, len(mine), "examples") as advance, world().together(what, adjoints):
        batches = risk.read_by_size(mine)
        for batch, columns in by_halves(risk, "the coupling", batches, coupled):
            total[:, live] += columns
            advance(len(batch))
    return world().sum(total) / len(indices)


def _in_step(risk: Risk, indices: Sequence[int], adjoints: Tensor, progress: Progress | None) -> Tensor:
    """The same where parameters lie in shards: vectors are pieces, and a batch's part is a sum over processes."""
    total, what = risk.inherited.zeros(adjoints.shape[1]), f"coupling of {risk.where}"
    if not any(name in risk.inherited_values for name in risk.inherited.names):
        return total
    vectors = [risk.trained.unflatten(column) for column in adjoints.unbind(1)]
    task = (progress or Silent()).task(what, len(indices), "examples")
    with task as advance, world().together(what), differentiating():
        for here, batch in in_step(risk, indices):
            for place, vector in enumerate(vectors):
                total[:, place] += risk.inherited.flatten(_reverse(here, batch, vector))
            advance(len(batch))
    return total / len(indices)


def _loses_tangents(risk: Risk, probe: Batch) -> bool:
    """Whether the gradient in the inherited parameters passes an operation that is marked as differentiable once.

    Such an operation's backward silently drops tangents.
    """
    trained = {name: value.detach().requires_grad_() for name, value in risk.trained_values.items()}
    inherited = {name: value.detach().requires_grad_() for name, value in risk.inherited_values.items()}
    with torch.enable_grad():
        total = risk.losses(trained, inherited, probe).sum()
        if not total.requires_grad:
            return False
        slopes = torch.autograd.grad(total, tuple(inherited.values()), create_graph=True, materialize_grads=True)
    try:
        check_differentiable_again(slopes)
    except RuntimeError:
        return True
    return False


def coupling_of(risk: Risk, batch: Batch, vector: Params) -> Params:
    """`(d2L / dW dTheta) v` for the summed losses L of one batch.

    Raises:
        DifferentiationError: an operation lacks the second derivative, in either mode.
    """
    try:
        return _reverse(risk, batch, vector)
    except DifferentiationError:
        if _loses_tangents(risk, batch):
            raise
        try:
            return _forward(risk, batch, vector)
        except (RuntimeError, NotImplementedError):
            pass  # the reverse product's error names the operation
        raise


def _forward(risk: Risk, batch: Batch, vector: Params) -> Params:
    def slope(trained: Params) -> Params:
        return grad(lambda inherited: risk.losses(trained, inherited, batch).sum())(risk.inherited_values)

    return jvp(slope, (risk.trained_values,), (vector,))[1]


def _reverse(risk: Risk, batch: Batch, vector: Params) -> Params:
    trained = {name: value.detach().requires_grad_() for name, value in risk.trained_values.items()}
    inherited = {name: value.detach().requires_grad_() for name, value in risk.inherited_values.items()}
    try:
        with torch.enable_grad(), kept():  # the graph of a gradient holds all activations
            total = risk.losses(trained, inherited, batch).sum()
            slopes = torch.autograd.grad(total, tuple(trained.values()), create_graph=True, materialize_grads=True)
            check_differentiable_again(slopes)
            along = torch.stack([(s * vector[name]).sum() for name, s in zip(trained, slopes, strict=True)]).sum()
        if not along.requires_grad:  # nothing of the inherited parameters is in the slopes
            return {name: torch.zeros_like(value) for name, value in inherited.items()}
        rows = torch.autograd.grad(along, tuple(inherited.values()), materialize_grads=True)
    except (RuntimeError, NotImplementedError) as cause:
        raise DifferentiationError(
            f"{risk.where}: the coupling to the previous stage needs second derivatives, which an operation lacks "
            f"({first_line(cause)}); replace that operation"
        ) from cause
    return dict(zip(inherited, rows, strict=True))
