"""A stage's strict minimum by truncated Newton: what "trained to the end" means, to ten digits."""

from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import DescriptionError, SolveError, refuse
from stagetrace.progress import Progress, Silent
from stagetrace.solvers.spectrum import Lowest, lowest_ritz_pair
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.stage import check_count
from stagetrace.validation.descent import newton_direction
from stagetrace.validation.landscape import Linearization, WeightedObjective
from stagetrace.validation.minimum import Minimum
from stagetrace.validation.preconditioner import Preconditioner

GIB = 2**30

PROBES = 40
"""Products that look for negative curvature at a stationary point."""


def minimise(
    bound: BoundStage,
    weights: Tensor | None = None,
    *,
    tolerance: float = 1e-8,
    max_steps: int = 200,
    cg_steps: int = 1000,
    strict: bool = True,
    proximity: float = 0.0,
    preconditioner: Preconditioner | None = None,
    memory: int = 2 * GIB,
    progress: Progress | None = None,
) -> Minimum:
    """Minimise `(1/n) sum_i w_i loss_i + penalty` over the stage's trained parameters, from where they are.

    n is the number of examples whatever their weights, so weight 0 removes an example as the score means it:
    `epsilon = -1/n`. The penalty is weight decay and the pull of the stage's link. Full batch, in the
    model's dtype; the model is not touched. Newton steps are solved as exactly as pays (Eisenstat & Walker 1996,
    choice 2: quadratic convergence at the end), with backtracking, and go round negative curvature.

    Args:
        bound: the stage at its place in a chain: `chain["pretrain"]`.
        weights: one per example, `[n]`; None weighs each by 1.
        tolerance: the gradient norm to reach; 1e-10 is within reach of float64 at losses near 1.
        max_steps: Newton steps; cg_steps: products in each.
        strict: at a stationary point look for negative curvature with 40 more products, and leave a saddle point
            where there is some. Not needed from next to a strict minimum.
        proximity: adds `proximity / 2 |x - start|^2`, a pull towards where the parameters are: a well-posed question
            where a minimum is too flat for examples to leave it by a small step (Bae et al. 2022). From a minimum of
            the rest, what an example moves is then `(H + proximity I)^-1`, a damped solve, to first order.
        preconditioner: an inverse near that of the Hessian, see `Preconditioner.of`; from next to the minimum that it
            was made at, it saves most products.
        memory: bytes of kept intermediates per process; beyond it products cost twice as much.
        progress: what to draw.

    Raises:
        DescriptionError: parameters below float64, or weights that do not fit.
        DataError: a loss at the start is NaN or infinite; the example is named.
        DifferentiationError: the model has no second derivatives.

    Source: Dembo & Steihaug (1983); Nocedal & Wright (2006), section 7.1.

    Example:
        The mean of 1 and 4, and without the 4 (n stays 2):

        >>> from stagetrace import Chain, Stage
        >>> from stagetrace.objectives import Regression
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> data = torch.utils.data.TensorDataset(torch.ones(2, 1), torch.tensor([[1.0], [4.0]]))
        >>> chain = Chain(Stage("mean", model=model, objective=Regression(), data=data))
        >>> for weights in (None, torch.tensor([1.0, 0.0])):
        ...     print(round(minimise(chain["mean"], weights).values["weight"].item(), 6))
        2.5
        1.0
    """
    _check(bound, tolerance, max_steps, cg_steps, memory, proximity)
    objective = WeightedObjective(bound, weights, memory, proximity)
    with (progress or Silent()).task(f"minimising {bound.stage.where}", None, "steps") as advance:
        descent = _Descent(objective, tolerance, cg_steps, preconditioner)
        while descent.goes_on(max_steps, strict=strict):
            advance(1, note=f"gradient {descent.place.norm:.1e}")
    return descent.state


@final
class _Descent:
    """The state of a minimisation: the place, what it took, and what is known of its curvature."""

    def __init__(
        self, objective: WeightedObjective, tolerance: float, cg_steps: int, preconditioner: Preconditioner | None
    ) -> None:
        self.objective, self.tolerance, self.cg_steps = objective, tolerance, cg_steps
        self._preconditioner = preconditioner
        self.place = objective.at(objective.start)
        self._before, where = self.place.norm, objective.bound.stage.where
        if not torch.isfinite(self.place.gradient.sum() + self.place.value):
            objective.explain(objective.start)
            raise SolveError(f"{where}: the losses are finite, but their mean or its gradient is not")
        self.state = Minimum(where, {}, 0.0, 0.0, 0, 0, float("inf"), converged=False, tolerance=tolerance)
        self._note(0, float("inf"), converged=False)

    def goes_on(self, max_steps: int, *, strict: bool) -> bool:
        """Take one step; False once there is nothing left to do, or nothing that helps."""
        may_step = self.state.steps < max_steps
        if self.place.norm > self.tolerance:
            return may_step and self._newton_step()
        if not strict:
            self._note(0, self.state.smallest_ritz, converged=True)
            return False
        lowest = lowest_ritz_pair(self.place.curvature, PROBES)
        is_saddle = lowest.value < -1e-10 * max(1.0, abs(lowest.largest))
        self._note(lowest.products, lowest.value, converged=not is_saddle)
        return is_saddle and may_step and self._leave_saddle(lowest)

    def _newton_step(self) -> bool:
        size = self.place.norm
        rtol = min(0.1, 0.9 * (size / self._before) ** 2) if size < self._before else 0.1
        rtol = max(rtol, 0.3 * self.tolerance / size)  # not beyond what is asked for
        place = self.place
        direction = newton_direction(
            place.curvature, place.gradient, rtol, self.cg_steps, self._longest, self._preconditioner
        )
        self._before = size
        moved = self._search(direction.step, direction.curvature)
        self._note(direction.products, direction.ritz, moved=moved)
        return moved

    def _leave_saddle(self, lowest: Lowest) -> bool:
        """Along negative curvature either way is down, where the gradient does not say which."""
        length = self._longest / 10
        sign = -1.0 if float(lowest.vector @ self.place.gradient) > 0 else 1.0
        moved = self._search(sign * length * lowest.vector, length**2 * lowest.value)
        self._before = self.place.norm
        self._note(0, self.state.smallest_ritz, moved=moved)
        return moved

    @property
    def _longest(self) -> float:
        """How far a step may follow negative curvature: as far as the parameters are from zero, and at least 1."""
        return max(1.0, float(self.place.point.norm()))

    def _search(self, step: Tensor, curvature: float) -> bool:
        """Move by the step or a half of it, a quarter, ... as soon as that descends enough (Armijo).

        Along negative curvature the second-order term is part of what is promised: it may be all there is.
        """
        here, slope, share = self.place, float(self.place.gradient @ step), 1.0
        for _ in range(50):
            trial = self.objective.at(here.point + share * step)
            if _descends(here, trial, share * slope + share**2 / 2 * min(0.0, curvature)):
                self.place = trial
                return True
            share /= 2
        return False

    def _note(self, products: int, ritz: float, *, converged: bool = False, moved: bool = False) -> None:
        self.state = replace(
            self.state,
            values=self.objective.bound.trained.unflatten(self.place.point),
            objective=self.place.value,
            gradient_norm=self.place.norm,
            steps=self.state.steps + moved,
            products=self.state.products + products,
            smallest_ritz=ritz,
            converged=converged,
        )


def _descends(here: Linearization, there: Linearization, promised: float) -> bool:
    """Armijo's rule; where the promised change drowns in the value's rounding, the gradient must get smaller."""
    if abs(promised) > 1e3 * torch.finfo(here.point.dtype).eps * max(1.0, abs(here.value)):
        return there.value <= here.value + 1e-4 * promised
    return there.norm < here.norm


def _check(bound: BoundStage, tolerance: float, max_steps: int, cg_steps: int, memory: int, proximity: float) -> None:
    where = bound.stage.where
    if not (isinstance(proximity, (int, float)) and 0 <= proximity < float("inf")):
        refuse(f"minimise({where}): proximity must be a number of at least 0, got {proximity!r}")
    if not (isinstance(tolerance, float) and 0 < tolerance < float("inf")):
        refuse(f"minimise({where}): tolerance must be a gradient norm above 0, such as 1e-8, got {tolerance!r}")
    for name, value in (("max_steps", max_steps), ("cg_steps", cg_steps), ("memory", memory)):
        check_count(value, f"minimise({where}): {name}")
    for name, dtype in zip(bound.trained.names, bound.trained.dtypes, strict=True):
        if dtype != torch.float64:
            raise DescriptionError(
                f"{where}: parameter '{name}' is {dtype}, in which a gradient norm of {tolerance:.0e} drowns in "
                "rounding; solve in double precision: type model=model.double() in every stage"
            )
