"""The rows of a Gauss-Newton matrix: `G = B' B`, with a row for each example and each direction of its outputs.

With J_i the derivative of example i's outputs in the parameters and H_i the loss's second derivative at them,

    G = (1/n) sum_i J_i' H_i J_i,    H_i = sum_k h_ik u_ik u_ik',    so the rows of B are  sqrt(h_ik / n) u_ik' J_i.

Of a cross-entropy over C classes one of the C eigenvalues is zero, and of a confident prediction all are tiny: such
rows are small, and a solver leaves them out. The norms say what that costs: leaving rows out changes G by a matrix of
at most the sum of their squared norms.

Source: Martens (2020), section 8; for the solve in the space of the rows, Woodbury (1950).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import final

import torch
from torch import Tensor
from torch.func import grad, jvp

from stagetrace.curvature.operations import counted_operations
from stagetrace.curvature.operator import Factor, Rows
from stagetrace.curvature.processes import among_processes
from stagetrace.errors import DataError, DifferentiationError, SolveError, StagetraceError, first_line
from stagetrace.parallel import world
from stagetrace.stages.data import Batch
from stagetrace.stages.halves import by_halves
from stagetrace.stages.per_example import inseparable, output_gradients, taken
from stagetrace.stages.risk import Risk
from stagetrace.taps import Tapped, output_rows, tap, uncovered
from stagetrace.taps.inside import UnseenError

__all__ = ["gauss_newton_factor"]

OUTPUTS = 256
"""Outputs an example beyond which its part of G has too many rows to be written out."""

BLOCK_BYTES = 2**27
"""Memory for the rows that are computed at once."""

FORWARDS, FORWARDS_BY_LAYER = 7.0, 3.0
"""Forward passes over an example that one of its rows costs, as a gradient by itself does; by a model's taps."""

NEGATIVE = 1e-3
"""How far below zero an eigenvalue of H_i may be, over the largest, before the loss counts as not convex."""

DISAGREEMENT = 1e-3
"""How far rows may be from plain autograd on a probe, relatively, before they count as wrong."""

PROBED = 3


def gauss_newton_factor(
    risk: Risk, indices: Sequence[int], mine: Sequence[int], gradients_per_product: float
) -> Factor | str:
    """The factor of the mean over `indices`, of which this process computes the rows of `mine`; or why there is none.

    The losses' convexity is looked at as the rows are made.

    Raises:
        SolveError: (from `rows`) a loss is not convex in the outputs, so that G has no real factor.
    """
    probe = next(iter(risk.read([indices[:PROBED]])))
    tapped = _tapped(risk)
    why = inseparable(probe) if tapped is None else None
    if why:
        return why
    with torch.no_grad():
        outputs = risk.outputs(risk.trained_values, risk.inherited_values, probe)
    each = outputs[0].numel()
    if each > OUTPUTS:
        return f"an example has {each:,} outputs, more than {OUTPUTS}"
    # rounded products would hide small differences; taps were compared without them
    why = _failure(risk.exact if tapped is None else risk, tapped, probe, outputs)
    if why:
        return why
    forward = max(counted_operations(risk, probe) / len(probe), 2.0 * risk.trained.size)
    return Factor(
        most_rows=each * len(indices),
        diagonal=torch.zeros(risk.trained.size, dtype=risk.trained.dtype, device=risk.trained.device),
        build=(FORWARDS if tapped is None else FORWARDS_BY_LAYER) * forward * each * len(indices),
        product=3 * gradients_per_product * forward * len(indices),
        rows=partial(
            _rows,
            risk,
            partial(_of_batch, risk, tapped),
            len(indices),
            mine,
            max(1, min(risk.examples.batch_size, _rows_at_once(risk) // each)),
        ),
    )


def _tapped(risk: Risk) -> Tapped | None:
    """The model with its taps, where these cover it and are as autograd is on a few examples."""
    try:
        tapped = tap(risk)
    except (DataError, DifferentiationError):
        return None
    return None if uncovered(tapped) else tapped


def _rows(
    risk: Risk,
    of_batch: Callable[[Batch], list[Tensor]],
    total: int,
    mine: Sequence[int],
    size: int,
    scale: Tensor,
    level: float,
    highest: float,
    memory: int,
) -> Rows | None:
    """Every process's rows, in the order of the processes; size: examples whose rows are computed at once.

    Raises:
        SolveError: a loss is not convex in the outputs.
    """
    found, what = _Collected(level, memory // world().size), "rows of the Gauss-Newton matrix"
    with world().together(f"{what} of {risk.where}", scale):
        batches = risk.read(risk.examples.batch_indices(mine, size=size))
        for _, pieces in by_halves(risk, what, batches, of_batch):
            for rows in pieces:
                found.add(rows.mul_(scale / total**0.5))
            if found.level > highest:
                break
    if max(world().gather(found.level)) > highest:
        return None
    rows, norms = found.largest_first() if found.blocks else (scale.new_zeros(0, scale.numel()), torch.zeros(0))
    matrix, squares = world().joined(rows), world().joined(norms.to(scale.device, torch.float64))
    return Rows(matrix, squares, sum(world().gather(found.left_out)), among_processes())


@final
class _Collected:
    """Rows whose squared norms are above a level, which is raised until they fit into memory."""

    def __init__(self, level: float, memory: int) -> None:
        self.level, self.memory, self.left_out = level, memory, 0.0
        self.blocks, self._squares = list[Tensor](), list[Tensor]()  # of a row that is left out: 0

    def add(self, rows: Tensor) -> None:
        self.blocks.append(rows)
        self._squares.append(torch.linalg.vector_norm(rows, dim=1).double().square())
        self._leave_out(len(self.blocks) - 1)
        # twice: while the blocks are put together both they and the matrix are held
        most = self.memory // (2 * rows.shape[1] * rows.element_size())
        if sum(map(len, self.blocks)) > most:
            self._raise(most)

    def largest_first(self) -> tuple[Tensor, Tensor]:
        """The rows and their squared norms; each row is copied once, from its block to its place."""
        squares = torch.cat(self._squares)
        order = squares.argsort(descending=True, stable=True)[: int((squares > 0).sum())]
        places = torch.full_like(squares, len(order), dtype=torch.long)
        places[order] = torch.arange(len(order), device=places.device)
        found = self.blocks[0].new_empty(len(order), self.blocks[0].shape[1])
        for block, place in zip(self.blocks, places.split([len(block) for block in self.blocks]), strict=True):
            held = place < len(order)
            found[place[held]] = block if bool(held.all()) else block[held]
        return found, squares[order]

    def _raise(self, most: int) -> None:
        """Let go of rows that are left out, and of so many of the smallest that the next ones have room, too."""
        norms = torch.cat(self._squares)
        if int((norms > 0).sum()) > most:
            self.level = max(self.level, float(norms.sort(descending=True).values[most * 7 // 8]))
        for place, block in enumerate(self.blocks):
            self._leave_out(place)
            held = self._squares[place] > 0
            if not bool(held.all()):
                self.blocks[place], self._squares[place] = block[held], self._squares[place][held]

    def _leave_out(self, place: int) -> None:
        norms = self._squares[place]
        below = norms <= self.level
        self.left_out += float(norms[below].sum())
        norms.masked_fill_(below, 0.0)


def _of_batch(risk: Risk, tapped: Tapped | None, batch: Batch) -> list[Tensor]:
    """A batch's rows, `[rows, trained.size]`, without the factor of the mean, some at a time."""
    if tapped is not None:
        try:
            return _by_layer(risk, tapped, batch)
        except UnseenError:  # a batch that uses the layers in other ways than the probe
            pass
    with torch.no_grad():
        outputs = risk.outputs(risk.trained_values, risk.inherited_values, batch)
    weights = _weights(risk, batch, outputs)
    pairs, found = weights.flatten(2).any(dim=2).nonzero(), list[Tensor]()
    for some in pairs.split(_rows_at_once(risk)) if len(pairs) else ():
        k, example = some.unbind(1)
        gradients = output_gradients(risk, taken(batch, example), weights[k, example])
        found.append(risk.trained.flatten_columns(gradients).mT.contiguous())
    return found


def _by_layer(risk: Risk, tapped: Tapped, batch: Batch) -> list[Tensor]:
    """The same by one forward pass, and a backward pass for each direction of the outputs."""
    record = tapped.taps.record(batch)
    if record.scattered:
        raise UnseenError(f"{risk.where}: a layer gave rows that are not one for each example")
    sums, found = tapped.sums(record), list[Tensor]()
    for weights in _weights(risk, batch, record.outputs.detach()):
        live = weights.flatten(1).any(dim=1)
        if bool(live.any()):
            rows = output_rows(tapped, record, weights, sums).to(risk.trained.dtype)
            found.append(rows if bool(live.all()) else rows[live])
    return found


def _weights(risk: Risk, batch: Batch, outputs: Tensor) -> Tensor:
    """`sqrt(h_ik) u_ik` for every direction k and example i, `[o, b, *an example's outputs]`."""
    values, vectors = _eigen(risk, batch, outputs)
    # what rounding leaves of an eigenvalue that is zero is no direction
    values = values.where(values > torch.finfo(outputs.dtype).eps * values.amax(dim=1, keepdim=True), 0.0)
    weights = (values.sqrt().unsqueeze(1) * vectors).to(outputs.dtype)
    return weights.permute(2, 0, 1).reshape(-1, *outputs.shape)


def _rows_at_once(risk: Risk) -> int:
    return max(1, BLOCK_BYTES // (risk.trained.size * risk.trained.dtype.itemsize))


def _eigen(risk: Risk, batch: Batch, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues `[b, o]` and eigenvectors `[b, o, o]` (in columns) of the losses' second derivatives, in float64."""
    slope = grad(lambda z: risk.reduce(z, batch).sum())
    flat = outputs.reshape(len(batch), -1)
    columns = list[Tensor]()
    for c in range(flat.shape[1]):
        along = torch.zeros_like(flat)
        along[:, c] = 1.0
        columns.append(jvp(slope, (outputs,), (along.reshape(outputs.shape),))[1].reshape(flat.shape))
    curvature = torch.stack(columns, dim=2).double()
    values, vectors = torch.linalg.eigh((curvature + curvature.mT) / 2)
    if bool((values.amin(dim=1) < -NEGATIVE * values.abs().amax(dim=1)).any()):
        raise SolveError(f"{risk.where}: the loss is not convex in the outputs, so Gauss-Newton has no real factor")
    return values.clamp_min(0.0), vectors


def _failure(risk: Risk, tapped: Tapped | None, probe: Batch, outputs: Tensor) -> str | None:
    """None if rows can be made of the probe; otherwise why not. Compared with autograd, one example at a time."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(outputs.shape, generator=generator).to(outputs)
    try:
        rows = (
            risk.trained.flatten_columns(output_gradients(risk, probe.content, weights)).mT
            if tapped is None
            else output_rows(tapped, tapped.taps.record(probe), weights)
        )
        _ = _eigen(risk, probe, outputs)
    except SolveError as cause:
        return str(cause)
    except StagetraceError:
        raise
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as cause:
        return f"no gradients of single outputs: {first_line(cause)}"
    allowed = max(DISAGREEMENT, risk.rounding**0.5)
    for row, weight, single in zip(rows, weights, risk.read([[index] for index in probe.indices]), strict=True):
        truth = _by_autograd(risk, single, weight)
        if bool(torch.linalg.vector_norm(row - truth) > allowed * torch.linalg.vector_norm(truth)):
            return "the gradients of single outputs are others than plain autograd's"
    return None


def _by_autograd(risk: Risk, single: Batch, weight: Tensor) -> Tensor:
    trained = {name: value.detach().requires_grad_() for name, value in risk.trained_values.items()}
    with torch.enable_grad():
        total = (risk.outputs(trained, risk.inherited_values, single)[0] * weight).sum()
        if not total.requires_grad:
            return risk.trained.zeros(1).squeeze(1)
        found = torch.autograd.grad(total, tuple(trained.values()), materialize_grads=True)
    return risk.trained.flatten(dict(zip(trained, found, strict=True)))
