"""The derivative through the very steps of a retraining, as an estimator."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.progress import Progress
from stagetrace.recording import Unrolled
from stagetrace.results.sign import UNIT
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.chain import Chain
from stagetrace.stages.revalued import with_values
from stagetrace.stages.stage import Stage
from stagetrace.tracing.query import Query
from stagetrace.tracing.trace import trace
from stagetrace.validation.estimators.estimator import check_name
from stagetrace.validation.fits.steps import Steps


@final
@dataclass(frozen=True)
class ExactSteps:
    """`removal_effect` of the retraining's own steps: trained once without any removal, recorded, differentiated.

    What `Influence` predicts of an idealised training, this one predicts of the steps that are taken, exactly to first
    order in an example's weight: the bar for every approximation.

    Unit: query loss.

    Args:
        fits: how each stage is trained again, by its name; those of the retraining that is predicted.
        seeds: the mean over these orders of the batches.
        name: for tables.

    Raises:
        DescriptionError: a fit is not `Steps`, or there is no seed.
    """

    fits: Mapping[str, Steps]
    seeds: Sequence[int] = (0,)
    name: str = "exact, through the steps"

    def __post_init__(self) -> None:
        check_name("ExactSteps", self.name)
        other = [stage for stage, fit in self.fits.items() if not isinstance(fit, Steps)]
        if other or not self.seeds:
            refuse("ExactSteps: give a Steps(...) for each stage, and a seed at least")

    @property
    def unit(self) -> str:
        return UNIT

    def removal_effects(self, chain: Chain, query: Query, stage: str, progress: Progress | None = None) -> Tensor:
        """As `Estimator` says; and what `trace` raises and warns of."""
        through = through_steps(chain, stage, self.fits, self.seeds)
        return trace(through, query, of=[stage], progress=progress or False)[stage].removal_effect


def through_steps(chain: Chain, stage: str, fits: Mapping[str, Steps], seeds: Sequence[int]) -> Chain:
    """The chain from that stage on, each stage differentiated through the steps of its fit.

    As in a retraining, stages before stay as they are, and the first one goes on from its own values.
    """
    later = chain.bound_stages[chain.names.index(stage) :]
    return Chain(*(_by_steps(bound, fits[bound.name], seeds, first=bound is later[0]) for bound in later))


def _by_steps(bound: BoundStage, fit: Steps, seeds: Sequence[int], *, first: bool) -> Stage:
    """The stage, to be differentiated through the steps of its fit; what its link kept requires no gradient."""
    stage = with_values(bound.stage, {})
    named = dict(stage.model.named_parameters())
    for name in bound.inherited.names:
        named[name].requires_grad_(False)
    shared = {} if first else bound.inherited_from | bound.anchored_to
    return replace(stage, link=Unrolled(shared, fit, seeds))
