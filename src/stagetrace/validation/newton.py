"""A stage's strict minimum by truncated Newton: training to convergence, to ten digits."""

from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import DescriptionError, SolveError, refuse
from stagetrace.progress import Progress, Silent
from stagetrace.solvers.spectrum import Lowest, lowest_ritz_pair
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.stage import check_count
from stagetrace.validation.minimum import Minimum
from stagetrace.validation.newton_direction import newton_direction
from stagetrace.validation.preconditioner import Preconditioner
from stagetrace.validation.weighted_objective import Linearization, WeightedObjective

GIB = 2**30

PROBES = 40
"""Products that check a stationary point for negative curvature."""


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

    n is the number of examples whatever their weights, so weight 0 removes an example in the sense of the score,
    `epsilon = -1/n`. The penalty is weight decay and the pull of the stage's link. Full batch, in the
    model's dtype; the model is not touched. Newton steps are solved inexactly, with the forcing terms of
    Eisenstat & Walker (1996, choice 2: quadratic convergence at the end), with backtracking, and follow negative
    curvature where they meet it.

    Args:
        bound: the stage at its place in a chain: `chain["pretrain"]`.
        weights: one per example, `[n]`; None weighs each by 1.
        tolerance: the gradient norm to reach; 1e-10 is within reach of float64 at losses near 1.
        max_steps: Newton steps; cg_steps: products in each.
        strict: check a stationary point for negative curvature with 40 more products, and leave a saddle point. Not
            needed near a strict minimum.
        proximity: adds `proximity / 2 |x - start|^2`, a pull towards the starting point, which makes the problem well
            posed where a minimum is too flat (Bae et al. 2022). From a minimum of the other terms, an example's effect
            is then `(H + proximity I)^-1`, a damped solve, to first order.
        preconditioner: approximately the inverse Hessian, see `Preconditioner.of`; near the minimum that it was made
            at, it saves most products.
        memory: bytes of kept intermediates per process; beyond it products cost twice as much.
        progress: where to report steps.

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
        descent = _Minimisation(objective, tolerance, cg_steps, preconditioner)
        while descent.advance(max_steps, strict=strict):
            advance(1, note=f"gradient {descent.point.norm:.1e}")
    return descent.state


@final
class _Minimisation:
    """The state of a minimisation: the current point, the work done, and what is known of the curvature there."""

    def __init__(
        self, objective: WeightedObjective, tolerance: float, cg_steps: int, preconditioner: Preconditioner | None
    ) -> None:
        self.objective, self.tolerance, self.cg_steps = objective, tolerance, cg_steps
        self._preconditioner = preconditioner
        self.point = objective.at(objective.start)
        self._before, where = self.point.norm, objective.bound.stage.where
        if not torch.isfinite(self.point.gradient.sum() + self.point.value):
            objective.raise_not_finite(objective.start)
            raise SolveError(f"{where}: the losses are finite, but their mean or its gradient is not")
        self.state = Minimum(where, {}, 0.0, 0.0, 0, 0, float("inf"), converged=False, tolerance=tolerance)
        self._record(0, float("inf"), converged=False)

    def advance(self, max_steps: int, *, strict: bool) -> bool:
        """Take one step; False once it has converged or cannot descend further."""
        may_step = self.state.steps < max_steps
        if self.point.norm > self.tolerance:
            return may_step and self._newton_step()
        if not strict:
            self._record(0, self.state.smallest_ritz, converged=True)
            return False
        lowest = lowest_ritz_pair(self.point.curvature, PROBES)
        is_saddle = lowest.value < -1e-10 * max(1.0, abs(lowest.largest))
        self._record(lowest.products, lowest.value, converged=not is_saddle)
        return is_saddle and may_step and self._leave_saddle(lowest)

    def _newton_step(self) -> bool:
        size = self.point.norm
        # eta = 0.9 (|g| / |g before|)^2 (Eisenstat & Walker 1996, choice 2), not beyond the tolerance
        rtol = min(0.1, 0.9 * (size / self._before) ** 2) if size < self._before else 0.1
        rtol = max(rtol, 0.3 * self.tolerance / size)
        point = self.point
        direction = newton_direction(
            point.curvature, point.gradient, rtol, self.cg_steps, self._longest, self._preconditioner
        )
        self._before = size
        stepped = self._search(direction.step, direction.curvature)
        self._record(direction.products, direction.ritz, stepped=stepped)
        return stepped

    def _leave_saddle(self, lowest: Lowest) -> bool:
        """Step along negative curvature: both directions descend, and the gradient chooses between them."""
        length = self._longest / 10
        sign = -1.0 if float(lowest.vector @ self.point.gradient) > 0 else 1.0
        stepped = self._search(sign * length * lowest.vector, length**2 * lowest.value)
        self._before = self.point.norm
        self._record(0, self.state.smallest_ritz, stepped=stepped)
        return stepped

    @property
    def _longest(self) -> float:
        """The longest step along negative curvature: the norm of the parameters, at least 1."""
        return max(1.0, float(self.point.point.norm()))

    def _search(self, step: Tensor, curvature: float) -> bool:
        """Backtracking: the step, half of it, a quarter, ... until one satisfies Armijo's rule.

        Along negative curvature the expected decrease includes the second-order term, which may be all of it.
        """
        here, slope, fraction = self.point, float(self.point.gradient @ step), 1.0
        for _ in range(50):
            trial = self.objective.at(here.point + fraction * step)
            if _descends(here, trial, fraction * slope + fraction**2 / 2 * min(0.0, curvature)):  # t g'p + t^2 p'Hp / 2
                self.point = trial
                return True
            fraction /= 2
        return False

    def _record(self, products: int, ritz: float, *, converged: bool = False, stepped: bool = False) -> None:
        self.state = replace(
            self.state,
            values=self.objective.bound.trained.unflatten(self.point.point),
            objective=self.point.value,
            gradient_norm=self.point.norm,
            steps=self.state.steps + stepped,
            products=self.state.products + products,
            smallest_ritz=ritz,
            converged=converged,
        )


def _descends(here: Linearization, there: Linearization, expected: float) -> bool:
    """Armijo's rule; where the expected decrease is below the value's rounding, the gradient must get smaller."""
    if abs(expected) > 1e3 * torch.finfo(here.point.dtype).eps * max(1.0, abs(here.value)):
        return there.value <= here.value + 1e-4 * expected
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
                f"{where}: parameter '{name}' is {dtype}, whose rounding does not allow a gradient norm "
                f"of {tolerance:.0e}; solve in double precision: type model=model.double() in every stage"
            )
