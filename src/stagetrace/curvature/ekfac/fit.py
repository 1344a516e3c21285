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
from typing import TypeVar, final

import torch
from torch import Tensor

from stagetrace.curvature.ekfac.blocks import Block, Form
from stagetrace.curvature.ekfac.factors import Factor
from stagetrace.curvature.ekfac.moments import LONGEST, Bases, Moments, Room
from stagetrace.curvature.memory import graph_bytes
from stagetrace.errors import SolveError
from stagetrace.parallel import world
from stagetrace.progress import part_done
from stagetrace.stages.cached import CachedBatches
from stagetrace.stages.data import Batch
from stagetrace.stages.gradient import explain_not_finite
from stagetrace.stages.halves import is_out_of_memory, shrink, within
from stagetrace.taps.find import Tapped, probe_of
from stagetrace.taps.gradients import Sums
from stagetrace.taps.groups import Group
from stagetrace.taps.record import MOST_SCATTERED
from stagetrace.taps.rest import Rest

__all__ = ["AT_ONCE", "Plan", "fit", "fitting", "form_of"]

T = TypeVar("T")

_WHAT = "the fit of EKFAC"

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


_Gradients = dict[str, list[Tensor]]
"""The gradients in the outputs of every layer's calls."""


@final
class _Fit:
    def __init__(self, tapped: Tapped, factor: Factor, plan: Plan) -> None:
        self.tapped, self.factor, self.plan, self.risk = tapped, factor, plan, tapped.risk
        self.forms: dict[int, Form] = {id(group): form_of(group, plan.exact) for group in tapped.groups}
        self._batches = self._read(within(self.risk.examples, _WHAT, plan.batch_size))
        dtype = torch.promote_types(self.risk.trained.dtype, torch.float32)
        self._room = Room(dtype, self.risk.trained.device, self.total)
        self._held: list[tuple[list[Sums], list[_Gradients]]] = []

    def blocks(self) -> list[Block]:
        """Both passes, the sums over processes, and the decompositions between them."""
        passes = 1 + any(form in ("Kronecker", "table") for form in self.forms.values())
        bases: dict[int, Bases] = self._summed(self._bases) if passes == 2 else {}
        self._decompose(list(bases.values()))
        moments = self._summed(lambda: self._moments(bases, passes))
        return [moments[id(group)].block() for group in self.tapped.groups]

    def _decompose(self, bases: Sequence[Bases]) -> None:
        """Each process some of them, the largest first in turn."""
        order = sorted(bases, key=lambda each: -sum(length**3 for length in each.shape))
        for each in order:
            each.sum_up()
        with world().together(f"the bases of {self.risk.where}"):
            for each in order[world().rank :: world().size]:
                each.decompose()
        for place, each in enumerate(order):
            each.take_over(place % world().size)

    def _bases(self) -> dict[int, Bases]:
        """The first pass, over this process's examples."""
        bases = {id(group): Bases(group, self._room) for group in self.tapped.tapped if self._turns(group)}
        self._run(lambda sums: _Pass(bases[id(sums.group)].watch(sums)) if id(sums.group) in bases else None, 0, 2)
        return bases

    def _moments(self, bases: dict[int, Bases], passes: int) -> dict[int, Moments]:
        """The last pass, over this process's examples."""
        moments = {
            id(group): Moments(group, self._room, bases.get(id(group)), self.forms[id(group)])
            for group in self.tapped.groups
        }
        rest = Rest(self.risk, [name for group in self.tapped.rest for name in group.names])
        self._run(
            lambda sums: _Pass(moments[id(sums.group)].watch(sums)),
            passes - 1,
            passes,
            (lambda batch, columns: self._add_rest(rest, moments, batch, columns)) if self.tapped.rest else None,
        )
        return moments

    def _summed(self, over: Callable[[], T]) -> T:
        """A pass; where memory runs out it begins again with batches of half the size, since sums are under way."""
        examples = self.risk.examples
        with world().together(f"{_WHAT} in {self.risk.where}"):
            while True:
                try:
                    return over()
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    size = shrink(examples, _WHAT, within(examples, _WHAT, self.plan.batch_size), error)
                self._held.clear()
                self._batches = self._read(size)
        raise AssertionError("a pass ends or raises")

    def _read(self, size: int) -> CachedBatches:
        mine = world().shard(self.plan.indices)
        return CachedBatches(self.risk, self.risk.examples.batch_indices(mine, size=size), self.plan.memory // 8)

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
        for sums, every in self._held:  # of the first pass
            for each in self._watched(watch, sums):
                for gradients in every:
                    each.add(gradients)
        if self._held:
            return
        room = self.plan.memory // 4 if done + 1 < passes and not self.tapped.rest else 0
        for number, batch in enumerate(self._batches):
            record = self.tapped.taps.record(batch)
            sums, every = self.tapped.sums(record), list[_Gradients]()
            watched = self._watched(watch, sums)
            room -= sum(each.bytes for each in sums)
            columns = self.factor.columns(self.risk, batch, record.outputs.detach(), self.plan.draws, self.plan.seed)
            for some in _some(columns, AT_ONCE if rest else 1):
                for column in some:
                    gradients = record.gradients(column)
                    for each in watched:
                        each.add(gradients)
                    room -= sum(one.nbytes for given in gradients.values() for one in given)
                    if room > 0:
                        every.append(gradients)
                if rest:
                    rest(batch, list(some))
            self._held.append((sums, every))
            if room <= 0:
                self._held.clear()
            part_done((done + (number + 1) / len(self._batches)) / passes)

    @staticmethod
    def _watched(watch: "Callable[[Sums], _Pass | None]", sums: Sequence[Sums]) -> "list[_Pass]":
        return [each for each in map(watch, sums) if each is not None]

    def _add_rest(self, rest: Rest, moments: "dict[int, Moments]", batch: Batch, columns: list[Tensor]) -> None:
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
            with world().together(f"a look for what is not finite in {self.risk.where}"):
                for batch in self._batches:
                    explain_not_finite(self.risk, batch)
            raise SolveError(f"{self.risk.where}: the fit of EKFAC is not finite, though losses and gradients are")
        return found


@final
@dataclass(frozen=True)
class _Pass:
    """What is done with a batch's gradients of one column."""

    add: Callable[[_Gradients], None]


def _some(columns: Iterator[Tensor], number: int) -> Iterator[list[Tensor]]:
    """The columns, up to so many at a time."""
    while taken := list(islice(columns, number)):
        yield taken
