"""Early stopping: what training that took so many steps, and then stopped, makes of a gradient.

A stage that took steps at the rates eta_k and stopped at the time `t = sum eta_k` answers to the weight of example i as

    dtheta / d epsilon_i = - D^-1/2 phi_t(D^-1/2 H D^-1/2) D^-1/2 (gradient of loss_i),   phi_t(h) = (1 - exp(-t h)) / h

if its curvature H and the rates `eta_k / D` of its entries stayed as they are at its end: descent along
`dtheta/ds = -D^-1 (H theta + epsilon_i gradient_i)` from `theta = 0` on. D is the metric of the optimiser: 1 for plain
gradient descent, the root of the second moments for Adam. Directions with `t h` well above 1 have arrived, and answer
by `1 / h`, as at a minimum; those well below have hardly begun, and answer by t.

Where curvature, gradients and D are known at several times, training is a chain of such stretches, each with those of
its end. The last answers to a query's gradient v; what it hands to the one before it is what of v goes back to where
the stretch began, and x being its own answer that is, by one product more,

    D^1/2 exp(-t A) D^-1/2 v = v - (H + D decay) x,    A = D^-1/2 H D^-1/2 + decay,    x = D^-1/2 phi_t(A) D^-1/2 v.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.operator import LinearOperator
from stagetrace.errors import refuse
from stagetrace.solvers.base import (
    ColumnSolutions,
    Prepared,
    Report,
    Spectrum,
    counted_from,
    refuse_preconditioner,
    silent,
)
from stagetrace.solvers.batched import run_batched
from stagetrace.solvers.flow import Flow
from stagetrace.solvers.krylov import Memory
from stagetrace.solvers.numerics import stack_columns
from stagetrace.solvers.scaled import ScaledOperator
from stagetrace.solvers.settings import check_count, check_damping, check_rtol
from stagetrace.solvers.stopped import LARGEST_EXPONENT, Stopped, run_stopped
from stagetrace.solvers.system import System


@final
@dataclass(frozen=True, eq=False)
class Segment:
    """A stretch of a training before its last one.

    time, metric, decay: of this stretch, as for `EarlyStopping`. values: the trained parameters where it ended, `[dim]`
    in the stage's order; curvature and examples' gradients are taken there.
    """

    time: float
    values: Tensor = field(repr=False)
    metric: Tensor | None = field(default=None, repr=False)
    decay: float | Tensor = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        _ = EarlyStopping(self.time, self.metric, self.decay)  # which checks them
        _check_entries("earlier", self.values, bool(self.values.isfinite().all()), "that are finite")


@final
@dataclass(frozen=True, eq=False)
class EarlyStopping:
    """`D^-1/2 phi_t(D^-1/2 H D^-1/2 + decay) D^-1/2 b`, in place of `H^-1 b`: for a stage that stopped early.

    time: t, the sum of the learning rates of all steps; of SGD with momentum divided by `1 - momentum`.
    metric: D, one number above 0 for each trained parameter entry, `[dim]` in the stage's order; each entry moved at
        the rate `eta / D`. Infinite: that entry was never moved. None: 1, plain gradient descent.
        `stagetrace.replay.stopped_early` reads it, and the time, off an optimiser or a recording.
    decay: of AdamW, decoupled from the gradient: one number for all entries, or `[dim]`. Weight decay that is part of
        the loss belongs to the curvature (`Stage(weight_decay=...)`).
    earlier: stretches of the training before the last one, in order; time, metric and decay are then the last one's.
        `trace` follows them all.
    memory: bytes for the basis. Where it does not fit, each vector of it is made a second time when it is added up:
        twice the products, with a few vectors in memory.

    growth: the largest exponent `-t h` of growth along negative curvature that is taken; beyond it a solve is refused.

    Nothing is damped, and no minimum is assumed. Of the default curvature it takes the Gauss-Newton matrix: over a
    whole training an effect would have grown exponentially along negative curvature, which did not last as long.
    Within one of several stretches it did: there `trace` takes the Hessian, unless effects would grow by more than
    exp(2). `Hessian()` is taken as it is.

    The residual is that of the differential equation in the metric, with c = D^-1/2 b and A the operator in phi_t:
    `|(c - A z) - exp(-t A) c| / |c|` for the answer `D^-1/2 z`, where A z is a true product and the exponential comes
    from the run's own basis; see `stopped.py` for what it bounds. For t without end it is that of `A z = c`.

    Raises:
        DescriptionError: a setting out of range.
        SolveError: (from `solve`) negative curvature, along which the answer would grow by more than that.

    Source: `docs/how-to-choose.md`; Botchev, Grimm & Hochbruck (2013) for the residual; Saad (1992) for the
    approximation.

    Example:
        Along a curvature of 2 the training arrived, and answers by 1/2; along 0 it went as far as t = 100 let it.

        >>> from stagetrace.curvature.operator import DiagonalOperator
        >>> from stagetrace.solvers import solve
        >>> H = DiagonalOperator(torch.tensor([2.0, 0.0], dtype=torch.float64))
        >>> solution = solve(H, torch.tensor([1.0, 1.0], dtype=torch.float64), EarlyStopping(time=100.0))
        >>> solution.value, str(solution.system)
        (tensor([  0.5000, 100.0000], dtype=torch.float64), 'x = phi_t(H) b, t = 100')
    """

    time: float
    metric: Tensor | None = field(default=None, repr=False)
    decay: float | Tensor = field(default=0.0, repr=False)
    rtol: float = 1e-3
    max_steps: int = 200
    memory: int = 2 * 2**30
    growth: float = LARGEST_EXPONENT
    earlier: tuple[Segment, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        _ = Flow(self.time)  # which checks it
        if self.metric is not None:
            positive = isinstance(self.metric, Tensor) and bool((self.metric > 0).all())
            _check_entries("metric", self.metric, positive, "above 0")
        if isinstance(self.decay, Tensor):
            _check_entries(
                "decay", self.decay, bool(((self.decay >= 0) & self.decay.isfinite()).all()), "of at least 0"
            )
        else:
            check_damping("EarlyStopping", self.decay, "decay")
        check_rtol("EarlyStopping", self.rtol)
        check_count("EarlyStopping", "max_steps", self.max_steps, 200)
        check_count("EarlyStopping", "memory", self.memory, 2 * 2**30)
        check_damping("EarlyStopping", self.growth, "growth")

    def __str__(self) -> str:
        metric = "" if self.metric is None else f", metric=[{self.metric.numel()}]"
        before = "" if not self.earlier else f", after {' and '.join(f'{each.time:g}' for each in self.earlier)}"
        return f"EarlyStopping(time={self.time:g}{before}{metric}, rtol={self.rtol})"

    @property
    def segments(self) -> "tuple[tuple[Tensor | None, EarlyStopping], ...]":
        """Every stretch in order: the values where it ended, None for the last one, and its own solver."""
        alone = replace(self, earlier=())
        before = [
            (each.values, replace(alone, time=each.time, metric=each.metric, decay=each.decay)) for each in self.earlier
        ]
        return (*before, (None, alone))

    @property
    def rule(self) -> "Undamped":
        decayed = bool(self.decay.any()) if isinstance(self.decay, Tensor) else bool(self.decay)
        return Undamped(Flow(self.time, self.metric is not None, decayed))

    def prepare(self, system: System, preconditioner: LinearOperator | None = None) -> Prepared:
        refuse_preconditioner("EarlyStopping", preconditioner)
        flow = self.rule.flow
        if self.earlier:
            refuse(
                "EarlyStopping(earlier=...) goes from one curvature to the next, and an operator is one of them; "
                "trace(solver=...) follows them all"
            )
        if system.filter != flow:
            refuse(f"EarlyStopping applies the function of its own rule, {flow.text('H')}, got {system}")
        operator = system.operator
        root = None if self.metric is None else self._placed("metric", self.metric.double().rsqrt(), operator)
        decay = self._placed("decay", self.decay, operator) if isinstance(self.decay, Tensor) else self.decay
        scaled = ScaledOperator(operator, root, decay) if flow.scaled or flow.decayed else operator
        return Prepared(system, partial(self._solve, scaled, root, flow))

    def at_start(self, system: System, rhs: Tensor, answer: Tensor) -> Tensor:
        """What of a gradient at the end goes back to where the training began, `D^1/2 exp(-t A) D^-1/2 rhs`.

        answer: that of `system` for `rhs`, `[dim, k]`. One more product.

        Example:
            With a curvature of 2 for a time of 1 what is moved at the start by 1 ends at exp(-2).

            >>> from stagetrace.curvature.operator import DiagonalOperator
            >>> H, v = DiagonalOperator(torch.full((1,), 2.0).double()), torch.ones(1, 1).double()
            >>> early = EarlyStopping(time=1.0)
            >>> system = early.rule(H)
            >>> early.at_start(system, v, early.prepare(system).solve(v).value)
            tensor([[0.1353]], dtype=torch.float64)
        """
        operator, shrinks = system.operator, torch.as_tensor(self.decay, dtype=torch.float64)
        if self.metric is not None:  # an entry that never moved has no answer, and its D is infinite
            shrinks = torch.where(self.metric.isinf(), 0.0, self.metric.double()) * shrinks
        shrinks = shrinks.to(operator.device, operator.dtype).reshape(-1, 1)
        return rhs - operator @ answer - shrinks * answer

    def most_products(self, operator: LinearOperator) -> int:
        """The products that one right-hand side takes at most, without the one that measures its residual."""
        columns = torch.empty(operator.size, 1, dtype=operator.dtype, device="meta")
        kept = Memory.plan(columns, 1, self.max_steps, self.memory, operator.shares).full_basis
        one = min(self.max_steps, operator.size) if kept else 2 * self.max_steps - 1
        return one + len(self.earlier) * (one + 1)

    def _placed(self, name: str, entries: Tensor, operator: LinearOperator) -> Tensor:
        """Numbers of the entries as a column beside the operator."""
        if entries.numel() != operator.size:
            refuse(
                f"EarlyStopping({name}=...) has {entries.numel():,} entries, but the operator {operator.size:,}; give "
                "one for each entry of the stage's trained parameters, in their order"
            )
        return entries.detach().to(operator.device, operator.dtype).unsqueeze(1)

    def _solve(
        self, operator: LinearOperator, root: Tensor | None, flow: Flow, columns: Tensor, report: Report
    ) -> ColumnSolutions:
        starts = columns if root is None else root * columns
        memory, kept = Memory.plan(columns, 1, self.max_steps, self.memory, operator.shares), operator.shares
        runs: list[Stopped] = []
        products = checks = done = 0
        for group in starts.split(memory.group, dim=1):
            iterations = [
                run_stopped(
                    c, flow, self.rtol, self.max_steps, kept=kept if memory.full_basis else None, growth=self.growth
                )
                for c in group.unbind(1)
            ]
            finished = run_batched(operator, iterations, counted_from(report, done))
            runs.extend(finished.outcomes)
            products, checks = products + finished.products, checks + finished.checks
            steps = max((run.steps for run in finished.outcomes), default=0)
            done += (steps + 1 if memory.full_basis else 2 * steps) if steps else 0  # the last of them measures
        value = stack_columns([run.value for run in runs], columns)
        ritz = [theta for run in runs for theta in run.ritz]
        return ColumnSolutions(
            value=value if root is None else root * value,
            residuals=tuple(run.residual for run in runs),
            statuses=tuple(run.status(self.rtol) for run in runs),
            products=products,
            checks=checks,
            steps=max((run.steps for run in runs), default=0),
            tolerance=self.rtol,
            notes=_notes(flow, min(ritz), max(ritz)) if ritz else (),
        )


@final
@dataclass(frozen=True)
class Undamped:
    """The rule of `EarlyStopping`: nothing is damped, and of an operator that has one the semi-definite approximation.

    Example:
        >>> from stagetrace.curvature.operator import IdentityOperator
        >>> str(Undamped(Flow(0.5))(IdentityOperator(2, torch.float64)))
        'x = phi_t(H) b, t = 0.5'
    """

    flow: Flow

    def __call__(self, operator: LinearOperator, report: Report = silent) -> System:
        del report
        stand_in = operator.psd_approximation
        if stand_in is None:
            return System(operator, self.flow)
        note = "the Gauss-Newton matrix was taken: negative curvature does not last for a whole training"
        return System(stand_in, self.flow, "G", notes=(note,))

    def with_spectrum(self, operator: LinearOperator, spectrum: Spectrum) -> System:
        del spectrum
        return self(operator)

    def scaled(self, factor: float) -> "Undamped":
        """The rule itself: there is no damping to multiply."""
        del factor
        return self


def _notes(flow: Flow, smallest: float, largest: float) -> tuple[str, ...]:
    """How far the stage got, by the ends of its spectrum."""
    low, high = flow.time * smallest, flow.time * largest
    notes = [
        f"t times the curvature goes from {low:.2g} to {high:.2g}: above 1 the stage had arrived, below it had not"
    ]
    if low < -1:
        notes.append(
            f"along negative curvature an effect grows by exp({-low:.3g}), which training is not known to do; take "
            "curvature=GaussNewton(), which has none"
        )
    return tuple(notes)


def _check_entries(name: str, entries: object, right: bool, words: str) -> None:
    """Refuse what is no vector of such numbers."""
    if not isinstance(entries, Tensor):
        got = f"a {type(entries).__name__}; give a tensor"
    elif entries.ndim != 1 or not entries.is_floating_point():
        got = f"{entries.dtype} {list(entries.shape)}"
    elif not right:
        got = f"one that is {float(entries.min()):.3g}"
    else:
        return
    refuse(
        f"EarlyStopping({name}=...) must be a vector [dim] of numbers {words}, one for each entry of the trained "
        f"parameters, got {got}"
    )
