"""Mean gradients over a data set, and the block that couples a stage to the one before it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import DataError, DifferentiationError, StagetraceError, first_line
from stagetrace.parallel import world
from stagetrace.progress import Progress, Silent
from stagetrace.stages.data import Batch, positions
from stagetrace.stages.halves import by_halves
from stagetrace.stages.in_step import in_step
from stagetrace.stages.per_example import example_gradients, inseparable
from stagetrace.stages.risk import Risk, check_finite
from stagetrace.stages.shards import differentiating
from stagetrace.stages.space import Params

FEW = 16
"""Examples up to which single gradients are taken one by one."""

PROBED = 4
"""Examples, spread over the data set, whose gradients are taken both ways."""

DISAGREEMENT = 1e-4
"""Over the gradient's norm: how far the two may lie apart; more in half precision."""

GRADIENT_BYTES = 2**28
"""Memory for the gradients that are computed at once."""


@final
@dataclass(frozen=True)
class Gradient:
    """A gradient at one stage: in the parameters it trained, in those it inherited, and in the running statistics that
    are followed through its training; one column per right-hand side.

    trained: `[trained.size, k]`; inherited: `[inherited.size, k]`; statistics: `[statistics.size, k]`, none by default.
    """

    trained: Tensor
    inherited: Tensor
    statistics: Tensor = field(default_factory=lambda: torch.zeros(0, 1))

    def __add__(self, other: "Gradient") -> "Gradient":
        return Gradient(
            self.trained + other.trained, self.inherited + other.inherited, self.statistics + other.statistics
        )

    def __sub__(self, other: "Gradient") -> "Gradient":
        return Gradient(
            self.trained - other.trained, self.inherited - other.inherited, self.statistics - other.statistics
        )


def batch_gradient(risk: Risk, batch: Batch) -> Gradient:
    """The gradient of the sum of a batch's losses, one column.

    By autograd itself and not by `torch.func`, so that it works for whatever a training loop can differentiate:
    functions with a `backward` and nothing else, checkpointing.

    Raises:
        DataError: a loss is NaN or infinite (the example is named), or a gradient is.
        DifferentiationError: the gradient cannot be taken; says what PyTorch says.
    """
    total, trained, inherited = differentiated(risk, batch)
    gradient = Gradient(risk.trained.flatten(trained).unsqueeze(1), risk.inherited.flatten(inherited).unsqueeze(1))
    if not bool(torch.isfinite(total + gradient.trained.sum() + gradient.inherited.sum())):
        explain_not_finite(risk, batch)
    return gradient


def differentiated(
    risk: Risk, batch: Batch, weights: Tensor | None = None, *, inherited: bool = True
) -> tuple[Tensor, Params, Params]:
    """The sum of the losses, and its gradient in the trained and in the inherited parameters, zero where there is none.

    weights: `[batch]`, what each loss is multiplied by; 1 by default. inherited: whether the latter is wanted.

    Raises:
        DifferentiationError: the gradient cannot be taken; says what PyTorch says.
    """
    trained = {name: value.detach().requires_grad_() for name, value in risk.trained_values.items()}
    kept = {name: value.detach().requires_grad_(inherited) for name, value in risk.inherited_values.items()}
    beside = kept if inherited else {}
    inputs = (*trained.values(), *beside.values())
    try:
        with torch.enable_grad():
            losses = risk.losses(trained, kept, batch)
            total = losses.sum() if weights is None else losses @ weights.to(losses)
            if not total.requires_grad:  # a loss without the parameters
                slopes = tuple(torch.zeros_like(value) for value in inputs)
            else:
                slopes = torch.autograd.grad(total, inputs, materialize_grads=True)
    except (RuntimeError, NotImplementedError) as cause:
        raise DifferentiationError(
            f"{risk.where}: the gradient of the loss cannot be taken ({first_line(cause)}); the library needs what a "
            "training step needs: replace the operation that is named"
        ) from cause
    found = dict(zip((*trained, *beside), (s.to_dense() if s.is_sparse else s for s in slopes), strict=True))
    return total.detach(), {name: found[name] for name in trained}, {name: found[name] for name in beside}


def trained_gradient(risk: Risk, batch: Batch) -> tuple[Tensor, Tensor]:
    """The sum of a batch's losses and its gradient in the trained parameters alone, `[trained.size]`.

    Raises:
        DataError, DifferentiationError: as `batch_gradient`.
    """
    total, trained, _ = differentiated(risk, batch, inherited=False)
    gradient = risk.trained.flatten(trained)
    if not bool(torch.isfinite(total + gradient.sum())):
        explain_not_finite(risk, batch)
    return total, gradient


def explain_not_finite(risk: Risk, batch: Batch) -> None:
    """Find what is not finite in a batch, and raise; nothing if it was only a sum that overflowed."""
    with torch.no_grad():
        check_finite(risk.losses(risk.trained_values, risk.inherited_values, batch), batch.indices, risk.where)
    for index in batch.indices:
        single = next(iter(risk.read([[index]])))
        for name, g in differentiated(risk, single)[1].items():
            if not bool(torch.isfinite(g).all()):
                raise DataError(
                    f"{risk.where}: the loss of example {index} is finite, but its gradient "
                    f"in '{name}' is not; the loss is not differentiable there"
                )


def mean_gradient(
    risk: Risk, indices: Sequence[int] | None = None, *, reduction: str = "mean", progress: Progress | None = None
) -> Gradient:
    """The gradient of the mean (or sum) of the losses, one column; the examples are sharded over processes."""
    chosen = range(len(risk.examples)) if indices is None else indices
    if risk.evaluation.shapes is not None:
        return _in_step(risk, chosen, reduction, progress)
    mine, what = world().shard(chosen), f"gradient of {risk.where}"
    trained, inherited = risk.trained.zeros(1), risk.inherited.zeros(1)
    with (progress or Silent()).task(what, len(mine), "examples") as advance, world().together(what):
        batches = risk.read_by_size(mine)
        for batch, gradient in by_halves(risk, "the gradient", batches, partial(batch_gradient, risk)):
            trained += gradient.trained
            inherited += gradient.inherited
            advance(len(batch))
    scale = 1 / len(chosen) if reduction == "mean" else 1.0
    return Gradient(world().sum(trained) * scale, world().sum(inherited) * scale)


def _in_step(risk: Risk, chosen: Sequence[int], reduction: str, progress: Progress | None) -> Gradient:
    """The same where parameters lie in shards: each gradient comes as a piece, summed over processes."""
    trained, inherited = risk.trained.zeros(1).squeeze(1), risk.inherited.zeros(1).squeeze(1)
    what, total = f"gradient of {risk.where}", 0.0
    task = (progress or Silent()).task(what, len(chosen), "examples")
    with task as advance, world().together(what), differentiating():
        for here, batch in in_step(risk, chosen):
            value, first, second = differentiated(here, batch)
            trained += risk.trained.flatten(first)
            inherited += risk.inherited.flatten(second)
            total += float(value)
            if not math.isfinite(total):
                raise DataError(
                    f"{risk.where}: the loss of one of the examples {min(batch.indices)} to {max(batch.indices)} is "
                    f"{total}; remove the example or fix its data, then run again"
                )
            advance(min(len(batch) * world().size, len(chosen)))
    wrong = (~torch.isfinite(torch.cat([trained, inherited]))).sum().double()
    if float(world().sum(wrong)):
        raise DataError(f"{risk.where}: the losses are finite, but the gradient of one is not")
    scale = 1 / len(chosen) if reduction == "mean" else 1.0
    return Gradient(trained.unsqueeze(1) * scale, inherited.unsqueeze(1) * scale)


def each_gradient(risk: Risk, progress: Progress | None = None) -> Gradient:
    """The gradient of every example's loss, one column per example; sharded over processes.

    Many examples are differentiated in batches, where a few of them then have the gradients that they have one by one.
    """
    size = _together(risk) if len(risk.examples) > FEW else 1
    return collected(risk, batch_gradient if size == 1 else gradients_at_once, size, progress)


def collected(
    risk: Risk, gradients: Callable[[Risk, Batch], Gradient], size: int, progress: Progress | None = None
) -> Gradient:
    """One column per example, from the columns of each batch of `size`; sharded over processes."""
    columns = len(risk.examples)
    trained, inherited = risk.trained.zeros(columns), risk.inherited.zeros(columns)
    mine, what = world().shard(range(columns)), f"gradients of {risk.where}"
    with (progress or Silent()).task(what, len(mine), "examples") as advance, world().together(what):
        batches = risk.read_by_size(mine, size)
        for batch, gradient in by_halves(risk, "single gradients", batches, partial(gradients, risk)):
            here = positions(batch.indices)
            trained[:, here], inherited[:, here] = gradient.trained, gradient.inherited
            advance(len(batch))
    return Gradient(world().sum(trained), world().sum(inherited))


def gradients_at_once(risk: Risk, batch: Batch) -> Gradient:
    """The gradient of each of a batch's losses, one column per example.

    Raises:
        DataError: a loss is NaN or infinite (the example is named), or a gradient is.
    """
    losses, trained, inherited = example_gradients(risk, batch, risk.inherited_values)
    gradient = Gradient(risk.trained.flatten_columns(trained), risk.trained.zeros(0).new_zeros(0, len(batch)))
    if risk.inherited.size:
        gradient = replace(gradient, inherited=risk.inherited.flatten_columns(inherited))
    if not bool(torch.isfinite(losses.sum() + gradient.trained.sum() + gradient.inherited.sum())):
        explain_not_finite(risk, batch)
    return gradient


def _together(risk: Risk) -> int:
    """How many examples are differentiated at once: as many as fit, or 1 where that gives no right gradients."""
    probe = probe_of_gradients(risk)
    if inseparable(probe) or not same_gradients(risk.exact.unweighted, probe, gradients_at_once):
        return 1
    return fitting_gradients(risk)


def probe_of_gradients(risk: Risk) -> Batch:
    """The first examples and some spread over the data set."""
    total = len(risk.examples)
    spread = sorted({0, min(1, total - 1), *(place * total // PROBED for place in range(PROBED))})
    return next(iter(risk.read([spread])))


def fitting_gradients(risk: Risk) -> int:
    """How many examples' gradients fit into `GRADIENT_BYTES`, at most a batch's."""
    each = (risk.trained.size + risk.inherited.size) * risk.trained.zeros(0).element_size()
    return max(1, min(risk.examples.batch_size, GRADIENT_BYTES // each))


def same_gradients(risk: Risk, probe: Batch, gradients: Callable[[Risk, Batch], Gradient]) -> bool:
    """Whether the gradients of a batch are those of its examples one by one."""
    try:
        found = gradients(risk, probe)
    except StagetraceError:
        return False  # one by one says which example
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        return False
    columns = torch.cat([found.trained, found.inherited])
    allowed = max(DISAGREEMENT, risk.rounding**0.5)
    for column, single in zip(columns.unbind(1), risk.read([[index] for index in probe.indices]), strict=True):
        alone = batch_gradient(risk, single)
        truth = torch.cat([alone.trained, alone.inherited]).squeeze(1)
        if bool(torch.linalg.vector_norm(column - truth) > allowed * torch.linalg.vector_norm(truth)):
            return False
    return True
