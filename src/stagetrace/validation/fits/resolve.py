"""Full-batch Newton to a strict minimum: the training that the influence function is defined by."""

from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.stages.bound import BoundStage
from stagetrace.validation.fits.fit import Copies, Fit, one_copy, stacked
from stagetrace.validation.newton import minimise
from stagetrace.validation.preconditioner import Preconditioner
from stagetrace.validation.rebinding import with_previous

FEW = 0.05
"""With more of the weight than this removed, the curvature at the minimum is no good preconditioner."""


@final
@dataclass(frozen=True, eq=False)
class Resolve(Fit):
    """Every copy solved to a gradient norm of `tolerance`, from where the stage was; float64 is needed.

    A stage keeps the pull of its link, towards the new values of the stage before.

    Args:
        tolerance, max_steps: see `stagetrace.validation.newton.minimise`.
        proximity: see there: a pull of each stage towards its trained values, for minima that are too flat. The
            matching prediction is a solve with the same damping, `Lanczos(damping=proximity, filter=Shift)`.

    Raises:
        SolveError: a copy did not reach the tolerance.
    """

    tolerance: float = 1e-8
    max_steps: int = 400
    proximity: float = 0.0
    is_stochastic: bool = field(default=False, init=False, repr=False)
    _known: dict[int, tuple[BoundStage, Preconditioner | None]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.proximity < float("inf"):
            refuse(f"Resolve: proximity must be a number of at least 0, got {self.proximity!r}")

    def __getstate__(self) -> dict[str, object]:
        """Its settings alone: cached preconditioners do not make it another fit."""
        return {**vars(self), "_known": {}}

    def prepare(self, bound: BoundStage) -> None:
        """Make the preconditioner of a stage, once, before processes share the work."""
        if id(bound) not in self._known:
            self._known[id(bound)] = bound, Preconditioner.of(bound, self.proximity)

    def __call__(self, bound: BoundStage, weights: Tensor, previous: Copies | None, seed: int) -> Copies:
        del seed
        self.prepare(bound)
        known, found = self._known[id(bound)][1], []
        for place, weight in enumerate(weights):
            again = with_previous(bound, None if previous is None else one_copy(previous, place))
            few = float((1 - weight).clamp_min(0).sum()) <= FEW * len(weight)
            minimum = minimise(
                again,
                weight,
                tolerance=self.tolerance,
                max_steps=self.max_steps,
                proximity=self.proximity,
                strict=False,
                preconditioner=known if few else None,
            )
            values = {name: value.detach() for name, value in again.stage.model.named_parameters()}
            found.append({**values, **minimum.checked()})
        return stacked(found)
