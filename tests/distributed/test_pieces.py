"""What a solve stores lies in pieces on its processes, and the answer is the one that a single process finds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stagetrace import Frozen, GaussNewton, Hessian, Lanczos, Shift
from stagetrace.curvature.processes import among_processes
from stagetrace.curvature.shares import Shares
from stagetrace.preflight.vectors import solver_bytes
from stagetrace.solvers import EarlyStopping, basis, solve
from stagetrace.solvers.basis import Basis
from stagetrace.solvers.krylov import Memory
from tests import jobs
from tests.distributed.forks import forked

SIZE = 27  # of two processes 14 and 13


def stored(work: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """What the work finds, and how many numbers of basis vectors the process makes room for."""
    make, made = basis.room, list[int]()

    def counted(rows: int, like: Tensor) -> Tensor:
        made.append(rows * like.numel())
        return make(rows, like)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(basis, "room", counted)
        return work(), sum(made)


def columns(number: int) -> Tensor:
    drawn = torch.randn(SIZE, number, generator=torch.Generator().manual_seed(1)).double()
    return drawn if number > 1 else drawn[:, 0]


def solved(solver: Any, number: int, curvature: Any = GaussNewton) -> Tensor:
    operator = curvature().operator(jobs.chain(Frozen("embedding"), sizes=(37, 23)).bound_stages[0])
    found = solve(operator, columns(number), solver)
    assert found.converged, found.notes
    return found.value


CASES: dict[str, Callable[[], Tensor]] = {
    "a run for each": lambda: solved(Lanczos(1e-3, 1e-5), 2, Hessian),
    "the damping from the spectrum": lambda: solved(Lanczos(rtol=1e-5), 1),
    "one shared basis": lambda: solved(Lanczos(0.01, 1e-5, filter=Shift, many="shared basis"), 12),
    "training that stopped": lambda: solved(EarlyStopping(3.0), 2),
}


def test_a_basis_lies_in_pieces_and_the_answer_does_not_change():
    """One test of all cases: the processes are started once."""
    alone = [stored(work) for work in CASES.values()]
    first, second = (outcome for outcome in forked(2, lambda rank: [stored(work) for work in CASES.values()]))
    assert first.error is None, first.error
    pairs = zip(CASES, alone, first.value, second.value, strict=True)
    for case, (whole, all_of_it), (one, ours), (other, theirs) in pairs:
        assert torch.equal(one, other), case
        torch.testing.assert_close(one, whole, rtol=0, atol=1e-10 * float(whole.abs().max()))
        assert all_of_it > 0, case
        assert ours + theirs == all_of_it, case
        assert ours == all_of_it * 14 // 27, case


def test_a_process_may_have_no_piece_at_all():
    """Of four entries three processes keep two, two and none."""
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(4, 3, generator=generator).double())[0]
    w, weights = torch.randn(4, generator=generator).double(), [1.0, -2.0, 3.0]

    def work(rank: int) -> tuple[int, list[Tensor]]:
        made = Basis(w, 3, among_processes())
        for q in Q.unbind(1):
            made.keep(q)
        coordinates = made.coordinates(w.unsqueeze(1))
        return made.entries, [made.orthogonalise(w), made.combine(weights), coordinates, made.vectors(coordinates)]

    along = Q.T @ w
    expected = [w - Q @ along, Q @ torch.tensor(weights).double(), along.unsqueeze(1), (Q @ along).unsqueeze(1)]
    for outcome, entries in zip(forked(3, work), (6, 6, 0), strict=True):
        assert outcome.error is None, outcome.error
        assert outcome.value[0] == entries
        torch.testing.assert_close(outcome.value[1], expected)


def test_what_fits_into_memory_is_counted_by_the_piece():
    right, four = torch.empty(1000, 3, dtype=torch.float64, device="meta"), Shares(processes=4)
    memory = (20 * 250 + 2 * 1000) * 8
    assert Memory.plan(right, 1, 20, memory, four) == Memory(True, 1)
    assert not Memory.plan(right, 1, 20, memory - 1, four).full_basis
    assert not Memory.plan(right, 1, 20, memory).full_basis
    solver = Lanczos(max_steps=20, memory=memory)
    assert solver_bytes(solver, 1000, torch.float64, 1, four) == memory
    assert solver_bytes(Lanczos(max_steps=20), 1000, torch.float64, 1) == 22 * 1000 * 8
