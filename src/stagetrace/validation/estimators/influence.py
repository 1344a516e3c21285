"""The library's own score as an estimator."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from stagetrace.curvature.choices import Curvature, Identity
from stagetrace.progress import Progress
from stagetrace.results.sign import UNIT
from stagetrace.solvers.base import Solver
from stagetrace.stages.chain import Chain
from stagetrace.tracing.query import Query
from stagetrace.tracing.trace import trace
from stagetrace.validation.estimators.estimator import check_choice, check_name

EVERY = 2**62
"""More tokens than any stage has."""


@final
@dataclass(frozen=True)
class Influence:
    """The multi-stage influence function: `removal_effect` of what `trace` gives.

    Unit: query loss; None where a curvature is `Identity()`, which leaves the ranking alone.

    Args:
        curvature, solver: as for `trace`: one for all stages, a mapping by stage name, or None for the defaults.
        name: for tables.

    Raises:
        DescriptionError: what is no curvature or no solver.

    Source: Chen et al. (2020), algorithm 1.

    Example:
        >>> Influence().name, Influence().unit
        ('multi-stage influence', 'query loss')
        >>> Influence(Identity(), name="identity curvature").unit is None
        True
    """

    curvature: Curvature | Mapping[str, Curvature] | None = None
    solver: Solver | Mapping[str, Solver] | None = None
    name: str = "multi-stage influence"

    def __post_init__(self) -> None:
        check_name("Influence", self.name)
        check_choice("Influence", "curvature", self.curvature)
        check_choice("Influence", "solver", self.solver)

    @property
    def unit(self) -> str | None:
        choices = self.curvature.values() if isinstance(self.curvature, Mapping) else [self.curvature]
        return None if any(isinstance(choice, Identity) for choice in choices) else UNIT

    def removal_effects(self, chain: Chain, query: Query, stage: str, progress: Progress | None = None) -> Tensor:
        """As `Estimator` says; and what `trace` raises and warns of."""
        result = trace(
            chain, query, curvature=self.curvature, solver=self.solver, of=[stage], progress=progress or False
        )
        return result[stage].removal_effect

    def token_effects(self, chain: Chain, query: Query, stage: str, progress: Progress | None = None) -> Tensor:
        """As `TokenEstimator` says; and what `trace` raises and warns of."""
        result = trace(
            chain,
            query,
            curvature=self.curvature,
            solver=self.solver,
            of=[stage],
            tokens=EVERY,
            progress=progress or False,
        )
        found = result.tokens[stage]
        return -found.values.double() / found.n_examples
