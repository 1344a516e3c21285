"""The response of a stage that stopped early, stretch by stretch between the checkpoints of its training."""

from dataclasses import replace
from functools import partial
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.auto import coupling_indices, describe_subset
from stagetrace.curvature.choices import Curvature
from stagetrace.curvature.cost import Cost
from stagetrace.curvature.mixed import mixed_product
from stagetrace.curvature.operator import LinearOperator
from stagetrace.errors import SolveError
from stagetrace.progress import Progress
from stagetrace.solvers.base import Solution
from stagetrace.solvers.early_stopping import EarlyStopping
from stagetrace.solvers.flow import Flow
from stagetrace.solvers.system import Equation, FlowSegments, System
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.gradient import Gradient
from stagetrace.stages.revalued import with_values
from stagetrace.tracing.backward import SolveProgress
from stagetrace.tracing.pull_back import handed_back
from stagetrace.tracing.responses.response import BackwardStep
from stagetrace.tracing.score import SumScorer

GROWTH = 2.0
"""Within one stretch effects may grow by exp of so much along negative curvature; by more they hardly did."""


@final
class InSegments:
    """A stage that was trained for some time, with what is known of its training at several points of it.

    With `H_l`, `D_l` and the examples' gradients at the end of stretch l, which took the time `t_l`, and `v_L` the
    query's gradient at the end of the last one,

        x_l = D_l^-1/2 phi_{t_l}(A_l) D_l^-1/2 v_l,    A_l = D_l^-1/2 H_l D_l^-1/2 (+ decay),
        v_{l-1} = D_l^1/2 exp(-t_l A_l) D_l^-1/2 v_l,

    example i scores `-sum_l (gradient of loss_i at l) . x_l`, and what was kept from the stage before gets its mixed
    derivative's part from each. Where curvature, gradients and D stay as they are within each stretch, that is exact
    for descent by small steps.

    Raises:
        DescriptionError: the curvature does not fit the stage.
    """

    def __init__(self, bound: BoundStage, curvature: Curvature, solver: EarlyStopping) -> None:
        self.bound, self.curvature, self.solver = bound, curvature, solver
        self._parts = list(zip(stretches(bound, solver), (alone for _, alone in solver.segments), strict=True))
        self._operator: LinearOperator | None = curvature.operator(bound)

    def cost(self) -> Cost | None:
        return None if self._operator is None else self._operator.cost()

    def backward(self, gradient: Gradient, known: Solution | None, progress: Progress) -> BackwardStep:
        """See `Response`; the solution's value has the adjoints of all stretches, the first one's first."""
        solution, bound = known or self._solve(gradient, progress), self.bound
        self._operator = None
        stacked = solution.value.to(bound.trained.device)
        adjoints = stacked.split(bound.trained.size)
        places = [place for place, _ in self._parts]

        def to_previous(previous: BoundStage) -> Gradient:
            inherited = gradient.inherited
            for place, adjoint in zip(places, adjoints, strict=True):
                indices = coupling_indices(self.curvature, place, adjoint.shape[1])
                inherited = inherited - mixed_product(place.risk, indices, adjoint, progress)
            nothing = torch.zeros_like(gradient.trained)
            return handed_back(bound, previous, Gradient(nothing, inherited, gradient.statistics))

        scorer = partial(SumScorer.of, [place.risk for place in places], adjoints)
        return BackwardStep(replace(solution, value=stacked), scorer, to_previous)

    def _solve(self, gradient: Gradient, progress: Progress) -> Solution:
        """All stretches, the last one first."""
        bound, found, left = self.bound, list[Solution](), gradient.trained
        with progress.task(f"solving stage '{bound.name}' in segments", None, "products") as advance:
            for number in reversed(range(len(self._parts))):
                place, solver = self._parts[number]
                operator = self._operator if place is bound else None
                try:
                    operator = operator or self.curvature.operator(place)
                    system, one = _solved(operator, solver, left, SolveProgress(advance, None))
                except SolveError as cause:
                    where = f"{bound.stage.where}, segment {number + 1} of {len(self._parts)}"
                    raise SolveError(f"while solving {where} ({solver}): {cause}") from cause
                found.append(one)
                if number:  # nothing came before the first
                    left = solver.at_start(system, left, one.value)
                    found[-1] = replace(one, products=one.products + left.shape[1])
                self._operator = None
        return _together(found[::-1], describe_subset(self.curvature, bound))


def stretches(bound: BoundStage, solver: EarlyStopping) -> list[BoundStage]:
    """The stage where each stretch of its training ended, the first one first; the last is the stage itself."""
    return [bound if values is None else _at(bound, values) for values, _ in solver.segments]


def _solved(
    operator: LinearOperator, solver: EarlyStopping, left: Tensor, report: SolveProgress
) -> tuple[System, Solution]:
    """One stretch, by the operator itself, or by its semi-definite approximation where effects would grow too much.

    Negative curvature at the end of a whole training did not last for it, but within a stretch it nearly did: six
    stretches with the Hessian came near the exact derivative where SGD was smooth (`docs/experiments/smoothness.md`).
    """
    if operator.psd_approximation is not None:
        bounded = replace(solver, growth=min(GROWTH, solver.growth))
        system = System(operator, solver.rule.flow)
        try:
            one = bounded.prepare(system).solve(left, report)
            return system, replace(one, notes=tuple(note for note in one.notes if "grows by exp" not in note))
        except SolveError:  # effects would grow by more than that
            pass
    system = solver.rule(operator)
    return system, solver.prepare(system).solve(left, report)


def _at(bound: BoundStage, values: Tensor) -> BoundStage:
    """The stage with other values of what it trained."""
    placed = bound.trained.unflatten(values.to(bound.trained.device, bound.trained.dtype))
    return replace(bound, stage=with_values(bound.stage, placed))


def _together(found: list[Solution], left_out: str | None) -> Solution:
    """One solution of all, the first stretch first; the worst residual of each column."""
    systems = [each.system for each in found if isinstance(each.system, Equation)]
    flows = tuple(system.filter for system in systems if isinstance(system.filter, Flow))
    columns = range(len(found[0].relative_residuals))
    statuses = tuple(type(found[0].status).worst(tuple(each.statuses[column] for each in found)) for column in columns)
    notes = dict.fromkeys(note for each in found for note in each.notes)
    replaced = [str(number) for number, system in enumerate(systems, 1) if system.matrix == "G"]
    if replaced and len(replaced) < len(systems):
        notes[f"the Gauss-Newton matrix was taken in segment {', '.join(replaced)}, the Hessian in the others"] = None
    return replace(
        found[-1],
        value=torch.cat([each.value for each in found]),
        system=FlowSegments(flows, "G" if all(system.matrix == "G" for system in systems) else "H"),
        relative_residuals=tuple(max(each.relative_residuals[column] for each in found) for column in columns),
        products=sum(each.products for each in found),
        checks=sum(each.checks for each in found),
        steps=max(each.steps for each in found),
        statuses=statuses,
        notes=(*notes, *filter(None, [left_out])),
    )
