"""The multi-stage influence as an estimator whose trace is kept on disk: what is told of it and compared is one run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import Tensor

from stagetrace import Chain, Query, trace
from stagetrace.curvature.choices import Curvature
from stagetrace.progress import Progress
from stagetrace.results.sign import UNIT
from stagetrace.solvers.base import Solver


@final
@dataclass(frozen=True)
class KeptInfluence:
    """As `stagetrace.validation.Influence`; the trace of every stage is kept in `folder`, or read if it is there."""

    folder: Path
    curvature: Mapping[str, Curvature]
    solver: Solver
    name: str

    @property
    def unit(self) -> str | None:
        return UNIT

    def removal_effects(self, chain: Chain, query: Query, stage: str, progress: Progress | None = None) -> Tensor:
        found = trace(
            chain, query, curvature=self.curvature, solver=self.solver, out=self.folder, progress=progress or False
        )
        return found[stage].removal_effect
