"""The fit of the blocks: one pass over the examples for their bases, one for the eigenvalues in these bases.

With g_is the gradient of example i along column u_s of its loss's factor (`factors.py`), the Gauss-Newton matrix is
`G = (1/n) sum_i sum_s g_is g_is'`. A layer's part of g_is is `sum_t d_t a_t'` over positions t, with inputs a_t and
gradients d_t in the outputs. The bases are eigenvectors of

    left:  sum_i,s,t d_t d_t'        right:  sum_i,t a_t a_t'

and the eigenvalues are the second moments there, `(1/n) sum_i,s (U_left' g_is U_right)^2`, entry by entry: the diagonal
of G in that basis, so that every block has G's trace. Tied weights add their gradients first. Sums are taken in single
precision at least, decompositions in float64.

Source: George et al. (2018) for the eigenvalues; Martens & Grosse (2015), Grosse & Martens (2016) for the bases.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.ekfac.blocks import Block, Form
from stagetrace.curvature.ekfac.factors import Factor
from stagetrace.curvature.memory import graph_bytes
from stagetrace.errors import SolveError
from stagetrace.parallel import world
from stagetrace.progress import part_done
from stagetrace.stages.cached import CachedBatches
from stagetrace.stages.data import Batch
from stagetrace.stages.gradient import explain_not_finite
from stagetrace.taps.find import Tapped, probe_of
from stagetrace.taps.gradients import Sums
from stagetrace.taps.groups import Group
from stagetrace.taps.record import MOST_SCATTERED
from stagetrace.taps.rest import Rest

LONGEST = 4096
"""The longest side that is given a basis: its decomposition takes a minute of one core."""

AT_ONCE = 8
"""Columns of the loss's factor that go back through the rest's pullback together."""


@final
@dataclass(frozen=True)
class Plan:
    """What is fitted: which examples, by how many draws, up to which size blocks are exact, in how much memory."""

    indices: Sequence[int]
    draws: int
    seed: int
    exact: int
    memory: int
    batch_size: int


def fitting(tapped: Tapped, memory: int) -> int:
    """Examples of a batch whose graph fits into half of the memory, by that of a few."""
    risk, probe = tapped.risk, probe_of(tapped.risk)
    _, held = graph_bytes(risk, probe, lambda: tapped.taps.record(probe))
    most = min(MOST_SCATTERED, risk.examples.batch_size) if tapped.taps.scatters else risk.examples.batch_size
    return min(most, max(1, memory // 2 * len(probe) // max(1, held)))


def form_of(group: Group, exact: int) -> Form:
    """How a group's block is held."""
    m, n = group.layout.shape
    if m * n <= exact:
        return "exact"
    if group.how != "matrix":
        return "diagonal"
    return "Kronecker" if m <= LONGEST and n <= LONGEST and not group.looks_up else "table"


def fit(tapped: Tapped, factor: Factor, plan: Plan) -> list[Block]:
    """The blocks of a stage's Gauss-Newton matrix, in the order of `tapped.groups`.

    Raises:
        DataError: a loss or a gradient is not finite; the example is named.
    """
    return _Fit(tapped, factor, plan).blocks()


@final
class _Fit:
    def __init__(self, tapped: Tapped, factor: Factor, plan: Plan) -> None:
        self.tapped, self.factor, self.plan, self.risk = tapped, factor, plan, tapped.risk
        self.forms = {id(group): form_of(group, plan.exact) for group in tapped.groups}
        mine = world().shard(plan.indices)
        self._batches = CachedBatches(
            self.risk, self.risk.examples.batch_indices(mine, size=plan.batch_size), plan.memory // 8
        )
        self.device = self.risk.trained.device
        self.dtype = torch.promote_types(self.risk.trained.dtype, torch.float32)

    def blocks(self) -> list[Block]:
        """Both passes, the sums over processes, and the decompositions between them."""
        passes = 1 + any(form in ("Kronecker", "table") for form in self.forms.values())
        bases = {id(group): _Bases(group, self) for group in self.tapped.tapped if self._turns(group)}
        if passes == 2:
            self._run(lambda sums: _Pass(bases[id(sums.group)].watch(sums)) if id(sums.group) in bases else None, 0, 2)
        for each in bases.values():
            each.decompose()
        moments = {
            id(group): _Moments(group, self, bases.get(id(group)), self.forms[id(group)]) for group in self.tapped.groups
        }
        rest = Rest(self.risk, [name for group in self.tapped.rest for name in group.names])
        self._run(
            lambda sums: _Pass(moments[id(sums.group)].watch(sums)),
            passes - 1,
            passes,
            (lambda batch, columns: self._add_rest(rest, moments, batch, columns)) if self.tapped.rest else None,
        )
        return [moments[id(group)].block() for group in self.tapped.groups]

    def _turns(self, group: Group) -> bool:
        return self.forms[id(group)] in ("Kronecker", "table")

    def _run(
        self,
        watch: "Callable[[Sums], _Pass | None]",
        done: int,
        passes: int,
        rest: Callable[[Batch, list[Tensor]], None] | None = None,
    ) -> None:
        """One pass: every column of every batch's factor, through every group that is watched."""
        for number, batch in enumerate(self._batches):
            record = self.tapped.taps.record(batch)
            watched = [each for each in map(watch, self.tapped.sums(record)) if each is not None]
            columns = self.factor.columns(self.risk, batch, record.outputs.detach(), self.plan.draws, self.plan.seed)
            for some in _some(columns, AT_ONCE if rest else 1):
                for column in some:
                    gradients = record.gradients(column)
                    for each in watched:
                        each.add(gradients)
                if rest:
                    rest(batch, list(some))
            part_done((done + (number + 1) / len(self._batches)) / passes)

    def _add_rest(self, rest: Rest, moments: "dict[int, _Moments]", batch: Batch, columns: list[Tensor]) -> None:
        sizes = [group.layout.size for group in self.tapped.rest]
        for part in rest.gradients(batch, torch.stack(columns)):
            for group, own in zip(self.tapped.rest, part.flatten(0, 1).split(sizes, dim=1), strict=True):
                moments[id(group)].add(own.unsqueeze(-1))

    def total(self, tensor: Tensor) -> Tensor:
        """The mean over all examples, from this process's sum.

        Raises:
            DataError: it is not finite; the example is named.
        """
        found = world().sum(tensor) / len(self.plan.indices)
        if not bool(torch.isfinite(found.sum())):
            for batch in self._batches:
                explain_not_finite(self.risk, batch)
            raise SolveError(f"{self.risk.where}: the fit of EKFAC is not finite, though losses and gradients are")
        return found

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=self.dtype, device=self.device)


@final
@dataclass(frozen=True)
class _Pass:
    """What is done with a batch's gradients of one column."""

    add: Callable[[dict[str, list[Tensor]]], None]


@final
class _Bases:
    """The second moments of a layer's inputs and of its outputs' gradients, and their eigenvectors."""

    def __init__(self, group: Group, fit: _Fit) -> None:
        m, n = group.layout.shape
        self._fit, self._group = fit, group
        self._left = fit.zeros(m, m) if m <= LONGEST and not group.looks_up else None
        self._right = fit.zeros(n, n) if 1 < n <= LONGEST else None
        self.left: Tensor | None = None
        self.right: Tensor | None = None

    def watch(self, sums: Sums) -> Callable[[dict[str, list[Tensor]]], None]:
        rows = sums.rows()
        if self._right is not None and not self._group.looks_up:
            for each in rows:
                self._right += _gram(each.flatten(0, 1).to(self._right.dtype))

        def add(gradients: dict[str, list[Tensor]]) -> None:
            for each, gave in zip(rows, sums.outs(gradients), strict=True):
                outs = gave.flatten(0, 1)
                if self._left is not None:
                    self._left += _gram(outs.to(self._left.dtype))
                if self._group.looks_up and self._right is not None:
                    # the side of the vectors: d_t of a lookup, and a_t weighted by |d_t| of a head with the same table
                    own = outs if not each.is_floating_point() else each.flatten(0, 1) * outs.norm(dim=1, keepdim=True)
                    self._right += _gram(own.to(self._right.dtype))

        return add

    def decompose(self) -> None:
        """The eigenvectors, in float64."""
        left, right = self._left, self._right
        self._left = self._right = None
        self.left = None if left is None else torch.linalg.eigh(self._fit.total(left).double())[1]
        self.right = None if right is None else torch.linalg.eigh(self._fit.total(right).double())[1]


@final
class _Moments:
    """The second moments of a group's gradients: of their entries in a basis, or of all pairs of them."""

    def __init__(self, group: Group, fit: _Fit, bases: _Bases | None, form: Form) -> None:
        m, n = group.layout.shape
        self._group, self._fit, self._form = group, fit, form
        self._left = None if bases is None or bases.left is None else bases.left.to(fit.dtype)
        self._right = None if bases is None or bases.right is None else bases.right.to(fit.dtype)
        self._bases = bases
        self._sum = fit.zeros(m * n, m * n) if form == "exact" else fit.zeros(m, n)

    def watch(self, sums: Sums) -> Callable[[dict[str, list[Tensor]]], None]:
        if self._bases is None:
            return lambda gradients: self._each(sums.matrices(gradients))
        rows = [
            each if self._right is None or not each.is_floating_point() else each.to(self._right.dtype) @ self._right
            for each in sums.rows()
        ]
        sides = [self._left if each.is_floating_point() else self._right for each in rows]
        return lambda gradients: self._turned(
            sums,
            rows,
            [
                each if side is None else each.to(side.dtype) @ side
                for each, side in zip(sums.outs(gradients), sides, strict=True)
            ],
        )

    def add(self, matrices: Tensor) -> None:
        """Gradients `[examples, m, n]`, in the basis where there is one."""
        if self._form == "exact":
            self._sum += _gram(matrices.flatten(1).to(self._sum.dtype))
        else:
            self._sum += matrices.to(self._sum.dtype).square().sum(dim=0)

    def block(self) -> Block:
        """The mean over all examples, decomposed where it is a whole block."""
        found, layout = self._fit.total(self._sum), self._group.layout
        if self._form != "exact":
            bases = self._bases
            left, right = (None, None) if bases is None else (bases.left, bases.right)
            return Block(layout, self._form, found, left, right)
        values, vectors = torch.linalg.eigh(found.double())
        return Block(layout.as_column(), "exact", values.clamp_min(0).unsqueeze(1), vectors)

    def _each(self, parts: Iterator[tuple[slice, Tensor]]) -> None:
        for _, matrices in parts:
            self.add(matrices)

    def _turned(self, sums: Sums, rows: Sequence[Tensor], outs: Sequence[Tensor]) -> None:
        m, n = self._group.layout.shape
        if len(rows) == 1 and not rows[0].is_floating_point():
            self._looked_up(rows[0], outs[0])
            return
        if len(rows) == 1 and rows[0].shape[1] == 1:  # one position: no gradient need be formed
            self._sum += outs[0][:, 0].square().mT @ rows[0][:, 0].square()
            return
        step = max(1, 2**27 // (4 * m * n))
        for first in range(0, sums.size, step):
            part = slice(first, first + step)
            self.add(sums.products([each[part] for each in rows], [each[part] for each in outs]))

    def _looked_up(self, lines: Tensor, outs: Tensor) -> None:
        """Of a table that is looked up once: only lines that occur, each example's gradients added up first."""
        m = self._group.layout.shape[0]
        keys = lines + m * torch.arange(len(lines), device=lines.device).unsqueeze(1)
        found, place = keys.reshape(-1).unique(return_inverse=True)
        summed = outs.new_zeros(len(found), outs.shape[-1]).index_add_(0, place, outs.flatten(0, 1))
        self._sum.index_add_(0, found % m, summed.square().to(self._sum.dtype))


def _gram(rows: Tensor) -> Tensor:
    return rows.mT @ rows


def _some(columns: Iterator[Tensor], number: int) -> Iterator[list[Tensor]]:
    """The columns, up to so many at a time."""
    while taken := list(islice(columns, number)):
        yield taken
