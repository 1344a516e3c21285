"""The score of a single-stage method: one inverse curvature, that of the fine-tuned model."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from stagetrace.curvature.auto import Auto
from stagetrace.curvature.choices import Curvature
from stagetrace.curvature.ekfac import EKFAC
from stagetrace.progress import Progress, Silent
from stagetrace.results.sign import UNIT
from stagetrace.solvers.base import Solver
from stagetrace.solvers.lanczos import Lanczos
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.chain import Chain
from stagetrace.tracing.backward import solution_warnings
from stagetrace.tracing.describe import by_stage
from stagetrace.tracing.query import Query
from stagetrace.tracing.responses.implicit import Implicit
from stagetrace.tracing.usual import closed_form
from stagetrace.validation.estimators.estimator import check_choice, check_name
from stagetrace.validation.estimators.origins import (
    as_single_stage,
    dot_effects,
    mapped_to_origins,
    parameter_origins,
    with_last_values,
)


@final
@dataclass(frozen=True)
class SingleStage:
    """The ordinary influence function at the fine-tuned model, as if its stage had been the only one.

    For example i of stage s, one of n, with last stage K:

        removal effect_i = + 1/n  (d loss_i / d W) . [H^-1 dq/dtheta]_W

    theta: all parameters of the last stage, trained or inherited (not constants); `dq/dtheta` the query's gradient.
    H: the curvature of `mean loss + weight_decay / 2 |theta|^2` of stage K in all of theta, without a link's pull:
        such a tool does not know where training started.
    W: those of stage s's trained parameters that theta came from, followed through the links; `[.]_W` is taken after
        the inverse, and adds up where several came from one.
    `d loss_i / d W`: at stage s's model with its own head and, for all it shares with stage K, the fine-tuned values.

    For a chain of one stage this is the ordinary influence function (Koh and Liang 2017), so it equals `Influence`.
    Sign: negative = removing it helps. Unit: query loss.

    Args:
        curvature, solver: of the last stage; of a mapping by stage name, the last stage's are taken. None takes the
            defaults of `trace`.
        name: for tables.

    Raises:
        DescriptionError: what is no curvature or no solver.

    Example:
        >>> SingleStage().name, SingleStage().unit
        ('single-stage influence', 'query loss')
    """

    curvature: Curvature | Mapping[str, Curvature] | None = None
    solver: Solver | Mapping[str, Solver] | None = None
    name: str = "single-stage influence"

    def __post_init__(self) -> None:
        check_name("SingleStage", self.name)
        check_choice("SingleStage", "curvature", self.curvature)
        check_choice("SingleStage", "solver", self.solver)

    @property
    def unit(self) -> str | None:
        return UNIT

    def removal_effects(self, chain: Chain, query: Query, stage: str, progress: Progress | None = None) -> Tensor:
        """As `Estimator` says; a solve that has no usable answer raises `SolveError`, one not as it should be warns."""
        names, bars = parameter_origins(chain, stage, self.name), progress or Silent()
        last = as_single_stage(chain.last)
        adjoint = self._adjoint(chain, last, query, bars)
        bound = with_last_values(chain, chain[stage], names)
        return dot_effects(bound, mapped_to_origins(bound, names, [(last.trained, adjoint)]), query, bars)

    def _adjoint(self, chain: Chain, last: BoundStage, query: Query, progress: Progress) -> Tensor:
        """`H^-1 dq/dtheta`, `[theta, k]`."""
        curvature = by_stage(chain, self.curvature, Auto(), "curvature")[last.name]
        usual = {last.name: closed_form(last)} if isinstance(curvature, EKFAC) else {}
        solver = by_stage(chain, self.solver, Lanczos(), "solver", usual)[last.name]
        solution = Implicit(last, curvature, solver).backward(query.gradient(last, progress), None, progress).solution
        for warning in solution_warnings(last.name, solution):
            warnings.warn(warning, stacklevel=4)
        return solution.value
