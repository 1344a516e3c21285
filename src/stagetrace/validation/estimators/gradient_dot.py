"""The gradient dot product: neither curvature nor coupling."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from stagetrace.progress import Progress, Silent
from stagetrace.stages.chain import Chain
from stagetrace.tracing.query import Query
from stagetrace.validation.estimators.estimator import check_name
from stagetrace.validation.estimators.origins import dot_effects, mapped_to_origins, parameter_origins


@final
@dataclass(frozen=True)
class GradientDot:
    """The dot product of the query's gradient and an example's, in the parameters they share.

        removal effect_i = + 1/n  (d loss_i / d W) . (dq / d W)

    W: those of the stage's trained parameters that the last stage's came from, followed through the links; `dq/dW`
        is the query's gradient at the last stage, in inherited parameters too, and adds up where several came from one.
    `d loss_i / d W`: at the stage's own model, as it left it.

    Gradients that point the same way: a training step on the example lowers the query loss, so removing it is
    predicted to raise it. Sign: negative = removing it helps. Unit: none, only the ranking means something.
    For a chain of one stage it equals `Influence(Identity(), Lanczos(damping=0.0))`.

    Source: Pruthi et al. (2020), TracIn, with the last checkpoint of each stage.

    Example:
        >>> GradientDot().name, GradientDot().unit is None
        ('gradient dot product', True)
    """

    name: str = "gradient dot product"

    def __post_init__(self) -> None:
        check_name("GradientDot", self.name)

    @property
    def unit(self) -> str | None:
        return None

    def removal_effects(self, chain: Chain, query: Query, stage: str, progress: Progress | None = None) -> Tensor:
        """As `Estimator` says."""
        names, bars, last = parameter_origins(chain, stage, self.name), progress or Silent(), chain.last
        gradient = query.gradient(last, bars)
        at_last = [(last.trained, gradient.trained), (last.inherited, gradient.inherited)]
        return dot_effects(chain[stage], mapped_to_origins(chain[stage], names, at_last), query, bars)
