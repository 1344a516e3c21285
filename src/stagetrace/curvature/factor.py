"""The rows of a Gauss-Newton matrix: `G = B' B`, with a row for each example and each direction of its outputs.

With J_i the derivative of example i's outputs in the parameters and H_i the loss's second derivative at them,

    G = (1/n) sum_i J_i' H_i J_i,    H_i = sum_k h_ik u_ik u_ik',    so the rows of B are  sqrt(h_ik / n) u_ik' J_i.

Of a cross-entropy over C classes one of the C eigenvalues is zero, and of a confident prediction all are tiny: such
rows are small, and a solver leaves them out. The norms say what that costs: leaving rows out changes G by a matrix of
at most the sum of their squared norms.

Source: Martens (2020), section 8; for the solve in the space of the rows, Woodbury (1950).
"""

from collections.abc import Sequence
from functools import partial
from typing import final

import torch
from torch import Tensor
from torch.func import grad, jvp

from stagetrace.curvature.operations import counted_operations
from stagetrace.curvature.operator import Factor, Rows, Shares
from stagetrace.errors import SolveError, StagetraceError, first_line
from stagetrace.parallel import world
from stagetrace.stages.data import Batch
from stagetrace.stages.halves import by_halves
from stagetrace.stages.per_example import inseparable, output_gradients, taken
from stagetrace.stages.risk import Risk

__all__ = ["gauss_newton_factor"]

OUTPUTS = 256
"""Outputs an example beyond which its part of G has too many rows to be written out."""

BLOCK_BYTES = 2**27
"""Memory for the rows that are computed at once."""

FORWARDS = 7.0
"""Forward passes over an example that one of its rows costs, as a gradient by itself does."""

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
    why = inseparable(probe)
    if why:
        return why
    with torch.no_grad():
        outputs = risk.outputs(risk.trained_values, risk.inherited_values, probe)
    each = outputs[0].numel()
    if each > OUTPUTS:
        return f"an example has {each:,} outputs, more than {OUTPUTS}"
    why = _failure(risk.exact, probe, outputs)
    if why:
        return why
    forward = max(counted_operations(risk, probe) / len(probe), 2.0 * risk.trained.size)
    return Factor(
        most_rows=each * len(indices),
        diagonal=torch.zeros(risk.trained.size, dtype=risk.trained.dtype, device=risk.trained.device),
        build=FORWARDS * forward * each * len(indices),
        product=3 * gradients_per_product * forward * len(indices),
        rows=partial(
            _rows, risk, len(indices), mine, max(1, min(risk.examples.batch_size, _rows_at_once(risk) // each))
        ),
    )


def _rows(
    risk: Risk, total: int, mine: Sequence[int], size: int, scale: Tensor, level: float, highest: float, memory: int
) -> Rows | None:
    """Every process's rows, in the order of the processes; size: examples whose rows are computed at once.

    Raises:
        SolveError: a loss is not convex in the outputs.
    """
    found, what = _Collected(level, memory // world().size), "rows of the Gauss-Newton matrix"
    with world().together(f"{what} of {risk.where}", scale):
        batches = risk.read(risk.examples.batch_indices(mine, size=size))
        for _, rows in by_halves(risk, what, batches, partial(_of_batch, risk)):
            found.add(rows * (scale / total**0.5))
            if found.level > highest:
                break
    if max(world().gather(found.level)) > highest:
        return None
    matrix = world().joined(found.matrix if found.blocks else scale.new_zeros(0, scale.numel()))
    squares = world().joined(found.squares if found.blocks else scale.new_zeros(0).double())
    shares = Shares(_mine, world().joined, world().sum)
    return Rows(matrix, squares, sum(world().gather(found.left_out)), shares)


def _mine(rows: int) -> slice:
    """Which of so many rows this process works on."""
    mine = world().shard(range(rows))
    return slice(mine[0], mine[-1] + 1) if mine else slice(0, 0)


@final
class _Collected:
    """Rows whose squared norms are above a level, which is raised until they fit into memory."""

    def __init__(self, level: float, memory: int) -> None:
        self.level, self.memory, self.left_out = level, memory, 0.0
        self.blocks, self._squares = list[Tensor](), list[Tensor]()

    @property
    def matrix(self) -> Tensor:
        return torch.cat(self.blocks)

    @property
    def squares(self) -> Tensor:
        return torch.cat(self._squares)

    def add(self, rows: Tensor) -> None:
        self.blocks.append(rows)
        self._squares.append(torch.linalg.vector_norm(rows, dim=1).double().square())
        self._keep(len(self.blocks) - 1)
        # twice: while the blocks are put together both they and the matrix are held
        while 2 * sum(block.numel() * block.element_size() for block in self.blocks) > self.memory:
            if not self._raised():
                break

    def _raised(self) -> bool:
        """Raise the level; False where no row is left."""
        smallest = min((float(norms.min()) for norms in self._squares if len(norms)), default=0.0)
        self.level = max(4 * self.level, smallest)
        for place in range(len(self.blocks)):
            self._keep(place)
        return any(map(len, self.blocks))

    def _keep(self, place: int) -> None:
        above = self._squares[place] > self.level
        if bool(above.all()):
            return
        self.left_out += float(self._squares[place][~above].sum())
        self.blocks[place], self._squares[place] = self.blocks[place][above], self._squares[place][above]


def _of_batch(risk: Risk, batch: Batch) -> Tensor:
    """A batch's rows, `[rows, trained.size]`, without the factor of the mean."""
    with torch.no_grad():
        outputs = risk.outputs(risk.trained_values, risk.inherited_values, batch)
    values, vectors = _eigen(risk, batch, outputs)
    # what rounding leaves of an eigenvalue that is zero is no direction
    pairs = (values > torch.finfo(outputs.dtype).eps * values.amax(dim=1, keepdim=True)).nonzero()
    found = list[Tensor]()
    for some in pairs.split(_rows_at_once(risk)):
        example, k = some.unbind(1)
        weights = (values[example, k].sqrt().unsqueeze(1) * vectors[example, :, k]).to(outputs.dtype)
        gradients = output_gradients(risk, taken(batch, example), weights.reshape(len(some), *outputs.shape[1:]))
        found.append(risk.trained.flatten_columns(gradients).mT)
    return torch.cat(found) if len(found) > 1 else found[0]


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


def _failure(risk: Risk, probe: Batch, outputs: Tensor) -> str | None:
    """None if rows can be made of the probe; otherwise why not. Compared with autograd, one example at a time."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(outputs.shape, generator=generator).to(outputs)
    try:
        rows = risk.trained.flatten_columns(output_gradients(risk, probe.content, weights)).mT
        _ = _eigen(risk, probe, outputs)
    except SolveError as cause:
        return str(cause)
    except StagetraceError:
        raise
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as cause:
        return f"no gradients of single outputs: {first_line(cause)}"
    allowed = max(DISAGREEMENT, torch.finfo(rows.dtype).eps ** 0.5)
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
