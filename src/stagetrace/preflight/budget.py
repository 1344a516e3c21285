"""A run within a budget of memory: counted before a product is made, and refused where no plan fits.

Of each stage the most that a run can hold at once is counted, from shapes and from the graph of one example:

    solving    the gradient's columns, the solver's vectors (as many as its `memory` lets it keep), and what products
               hold: a traced map, the graphs of all examples, or those of a chunk that is computed anew
    scoring    the adjoints, a batch's intermediates, and all scores

Where that is more than the budget leaves, `memory` of the curvature and of the solver are lowered until it fits. Both
decide how and not what is computed, so scores differ by rounding and by the solver's tolerance alone; what was lowered
is said. A budget is of each process, where there are several. What is held when the run begins (Python, PyTorch,
models, data) counts as it is found.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch

from stagetrace.curvature.choices import Curvature
from stagetrace.curvature.cost import Cost
from stagetrace.curvature.memory import allowance
from stagetrace.curvature.plan import TRACED_BYTES
from stagetrace.errors import DescriptionError, refuse
from stagetrace.parallel import world
from stagetrace.preflight.forecast import Forecast
from stagetrace.preflight.live_tensors import growth
from stagetrace.preflight.meter import resident_bytes
from stagetrace.preflight.units import as_size, enough, read_size
from stagetrace.preflight.vectors import solver_bytes
from stagetrace.solvers import Direct
from stagetrace.solvers.base import Solver
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.chain import Chain
from stagetrace.tracing.query import Query
from stagetrace.tracing.score import Scorer

__all__ = ["Fitted", "check_budget", "fit"]

SLACK = 1.1
"""What an allocator takes over what is counted."""

KEPT = 1.25
"""Memory over that of graphs which holds them, and does not hold a traced map, which takes some times as much."""

COLUMNS = 4
"""Copies of the right-hand sides that a solve holds: the gradient, the answer, and one of each on its way."""

SMALLEST = 2**20


@final
@dataclass(frozen=True)
class Fitted:
    """Settings that fit. notes: what was lowered, in words; memory: by count, the most that the process holds."""

    curvature: Mapping[str, Curvature]
    solver: Mapping[str, Solver]
    memory: int
    notes: tuple[str, ...]


def fit(
    chain: Chain,
    query: Query,
    budget: int | str,
    curvature: Mapping[str, Curvature],
    solver: Mapping[str, Solver],
    *,
    where: str = "budget",
) -> Fitted:
    """The settings of each stage that is solved, with as little memory as the budget asks for.

    budget: bytes of this process's memory, or a size such as "8GiB". where: how messages name it.

    Raises:
        DescriptionError: no plan fits; the message says which phase needs how much, and what to type instead.
    """
    allowed, rows = read_size(budget, where), query.rows or 1
    for bound in chain:
        if bound.trained.device.type != "cpu":
            refuse(
                f"{where} counts the memory of the CPU, but {bound.stage.where} is on {bound.trained.device}; leave it "
                "out, and bound what products keep there by the curvature's memory=, as in GaussNewton(memory=2**31)"
            )
    chosen, solvers, notes, most, results = dict(curvature), dict(solver), list[str](), 0, 0
    for bound in reversed(chain):
        if bound.recording is None:
            asked = curvature[bound.name], solver[bound.name]
            need, chosen[bound.name], solvers[bound.name] = _solving(bound, *asked, rows, allowed - results, where)
            notes += _changes(bound, *asked, chosen[bound.name], solvers[bound.name])
            most = max(most, need + results)
        width = 8 if query.rows is None else max(4, bound.trained.dtype.itemsize)
        results += len(bound.risk.examples) * rows * width
        most = max(most, _scoring(bound, query, allowed - results, where) + results)
    return Fitted(chosen, solvers, most, tuple(notes))


def check_budget(forecast: Forecast, budget: int | str, where: str) -> None:
    """Refuse a forecast that passes the budget.

    Raises:
        DescriptionError: says which phase, and what to type.
    """
    allowed, largest = read_size(budget, where), forecast.largest
    if largest.memory > allowed:
        size = as_size(largest.memory)
        refuse(
            f"{where}: {largest.what} ({largest.where}) is expected to take {size} of memory, and {as_size(allowed)} "
            f"are allowed; type {where} {enough(largest.memory)} or more, fewer queries, or a smaller batch_size"
        )


def _solving(
    bound: BoundStage, curvature: Curvature, solver: Solver, rows: int, allowed: int, where: str
) -> tuple[int, Curvature, Solver]:
    """The first plan that fits, the fastest first, and the bytes it takes at most."""
    cost = _of_all(curvature.operator(bound).cost())
    held = most_of_all(resident_bytes())
    columns = COLUMNS * rows * (bound.trained.size + bound.inherited.size) * bound.trained.dtype.itemsize
    least, graph, vectors = held, 0, 0
    for graph, memory in _products(curvature, cost):
        for vectors, kept in _vectors(bound, solver, rows):
            need = held + int(SLACK * (columns + graph + vectors))
            if need <= allowed:
                return need, _lowered(curvature, memory), _lowered(solver, kept)
            least = need
    parts = {"the queries' gradients": columns, "products": graph, "the solver's vectors": vectors}
    raise _too_much(
        where, f"solving {bound.stage.where}", least, allowed, held, parts, _instead(bound, solver, rows, parts)
    )


def _scoring(bound: BoundStage, query: Query, allowed: int, where: str) -> int:
    """Bytes that scoring the stage takes at most.

    Raises:
        DescriptionError: that is more than is allowed.
    """
    columns, risk = query.rows or 1, bound.risk
    adjoints = bound.trained.zeros(columns)
    scorer = Scorer.of(risk, adjoints, parts=False, rows=query.rows)

    def scored(number: int) -> None:
        for batch in risk.read([range(min(number, len(risk.examples)))]):
            scorer.contract(batch)

    fixed, each = map(most_of_all, growth(scored))
    size = min(risk.examples.batch_size, len(risk.examples))
    held = most_of_all(resident_bytes())
    need = held + int(SLACK * (fixed + each * size))
    if need > allowed:
        parts = {f"a batch of {size:,} examples": each * size, "the adjoints": fixed}
        fewer = int((allowed - held) / SLACK - fixed) // max(1, each)
        advice = f"Stage('{bound.name}', ..., batch_size={fewer})" if fewer > 0 else "fewer queries at a time"
        raise _too_much(where, f"scoring {bound.stage.where}", need, allowed, held, parts, advice)
    return need


def most_of_all(size: int) -> int:
    """The largest of all processes' numbers, so that they decide alike: a budget is of each of them."""
    return max(world().gather(size))


def _of_all(cost: Cost | None) -> Cost | None:
    if cost is None:
        return None
    names = ("cached_bytes", "chunk_examples", "chunk_bytes")
    return replace(cost, **{name: most_of_all(getattr(cost, name)) for name in names})


def _products(curvature: Curvature, cost: Cost | None) -> Iterator[tuple[int, int | None]]:
    """Bytes that products hold, and the curvature's memory for it (None: as it is), the fastest way first."""
    if cost is None or not hasattr(curvature, "memory"):
        yield (0 if cost is None else cost.held_bytes), None
        return
    asked = _memory_of(curvature)
    if cost.cached_bytes:
        traced = max(TRACED_BYTES.values()) * cost.cached_bytes
        yield min(traced, max(asked, cost.cached_bytes)), None
        kept = int(KEPT * cost.cached_bytes)
        if kept < asked:
            yield kept, kept
    one = cost.chunk_bytes // max(1, cost.chunk_examples)
    memory = min(asked, cost.chunk_bytes, cost.cached_bytes - 1 if cost.cached_bytes else asked)
    while memory > max(one, SMALLEST):
        yield 2 * memory, memory  # a product anew holds the graph and as much again on its way
        memory //= 2
    yield 2 * one, max(1, one)


def _vectors(bound: BoundStage, solver: Solver, rows: int) -> Iterator[tuple[int, int | None]]:
    """Bytes of a solver's vectors, and its memory for it (None: as it is), the fastest way first."""
    size, dtype = bound.trained.size, bound.trained.dtype
    yield solver_bytes(solver, size, dtype, rows), None
    memory: int | None = getattr(solver, "memory", None)
    if memory is None:
        return
    memory = min(memory, solver_bytes(solver, size, dtype, rows))
    while memory > SMALLEST:
        memory //= 2
        yield solver_bytes(_lowered(solver, memory), size, dtype, rows), memory


def _memory_of(setting: Any) -> int:
    """Bytes that a curvature or a solver may take on the CPU."""
    return allowance(setting.memory, torch.device("cpu"))


def _lowered(setting: Any, memory: int | None) -> Any:
    return setting if memory is None else replace(setting, memory=max(1, memory))


def _changes(bound: BoundStage, before: Any, asked: Any, after: Any, found: Any) -> list[str]:
    words = list[str]()
    for what, one, other in (("what products keep", before, after), ("the solver's vectors", asked, found)):
        if one != other:
            less, more = as_size(_memory_of(other)), as_size(_memory_of(one))
            words.append(f"{bound.stage.where}: {what} may take {less} instead of {more}")
    return words


def _instead(bound: BoundStage, solver: Solver, rows: int, parts: Mapping[str, int]) -> str:
    """What to type, by what takes most."""
    largest = max(parts, key=lambda part: parts[part])
    if largest == "the queries' gradients" and rows > 1:
        return f"fewer queries at a time than {rows:,}, in runs of their own"
    if isinstance(solver, Direct) and largest == "the solver's vectors":
        return f"--solve {bound.name}=lanczos"
    return f"--solve {bound.name}=curvature=ekfac or a smaller model"


def _too_much(
    where: str, phase: str, need: int, allowed: int, held: int, parts: Mapping[str, int], advice: str
) -> DescriptionError:
    if held >= allowed:
        return DescriptionError(
            f"{where}: {phase} is left {as_size(max(0, allowed))}, but Python, PyTorch, models and data hold "
            f"{as_size(held)} already; type {where} {enough(need)} or more"
        )
    said = ", ".join(f"{as_size(size)} for {part}" for part, size in parts.items() if size)
    return DescriptionError(
        f"{where}: {phase} needs {as_size(need)} of memory at least ({as_size(held)} held already, {said}), and "
        f"{as_size(allowed)} are allowed; type {advice}, or a budget of {enough(need)}"
    )
