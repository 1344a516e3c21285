"""Training the classifier's head again, when the network under it has changed but does not move."""

from dataclasses import dataclass, field
from typing import final

from torch import Tensor, nn

from experiments.language.models import Head
from experiments.language.stages import features_of, head_stage
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.revalued import with_values
from stagetrace.validation.fits.fit import Copies, Fit, one_copy, stacked, starting_values


@final
@dataclass(frozen=True)
class OnFeatures(Fit):
    """What `head` does to the classifier's head, on features that each copy's own kept network gives once.

    The same as `head` on the whole stage, without reading every sentence again at every step: a kept network gives a
    sentence the same features each time.

    Args:
        head: a fit of the head by itself, such as `Steps(...)`, whose Adam state is that of the head's parameters.
    """

    head: Fit
    is_stochastic: bool = field(default=True, init=False, repr=False)

    def __call__(self, bound: BoundStage, weights: Tensor, previous: Copies | None, seed: int) -> Copies:
        copies, trained = starting_values(bound, len(weights), previous), list[dict[str, Tensor]]()
        for place in range(len(weights)):
            stage = with_values(bound.stage, one_copy(copies, place))
            features, labels = features_of(stage, stage.data)
            head: nn.Module = stage.model.get_submodule("head")
            assert isinstance(head, Head)
            decay = stage.weight_decay
            assert isinstance(decay, (int, float))
            alone = BoundStage.of(head_stage(head, features, labels, decay), None)
            values = one_copy(self.head(alone, weights[place : place + 1], None, seed), 0)
            trained.append({f"head.{name}": value for name, value in values.items()})
        return {**copies, **stacked(trained)}
