"""The chain trained again without chosen examples: the stage they belong to, and every later one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.chain import Chain
from stagetrace.stages.revalued import with_values
from stagetrace.stages.space import Params
from stagetrace.tracing.query import Query
from stagetrace.validation.fits.fit import Fit, one_copy
from stagetrace.validation.fits.resolve import Resolve
from stagetrace.validation.fits.steps import Steps
from stagetrace.validation.removals import Removal
from stagetrace.validation.resolving import leave_out
from stagetrace.validation.token_masks import TokenNumbers, without_tokens


@final
@dataclass(frozen=True, eq=False)
class Retraining:
    """How a chain is trained again from one stage on, and what is measured of it.

    chain: as trained; query: whose loss is measured at the last stage; stage: whose examples are removed.
    fits: how each stage from that one on is trained, by its name.
    tokens: the stage's predicted tokens, where these are removed in place of examples: removals are their numbers.
    """

    chain: Chain
    query: Query
    stage: str
    fits: Mapping[str, Fit]
    tokens: TokenNumbers | None = None

    def __post_init__(self) -> None:
        self.chain.check_names([self.stage], "validate")
        for bound in self.later:
            if bound.name not in self.fits:
                refuse(
                    f"validate: no fit for {bound.stage.where}, which is trained again after '{self.stage}'; give "
                    "one for each of " + ", ".join(f"'{p.name}'" for p in self.later) + " (what was recorded, "
                    "link=Unrolled(...), is repeated without one)"
                )
        for place, bound in enumerate(self.later):
            self.fits[bound.name].check(bound, follows=place > 0)
        first = self.fits[self.later[0].name]
        if self.tokens is not None and not isinstance(first, Steps | Resolve):
            refuse(
                f"validate(tokens=True): {self.later[0].stage.where} is trained without tokens by Steps(...) or "
                f"Resolve(...), got {type(first).__name__}; give one of these for it"
            )

    @property
    def later(self) -> tuple[BoundStage, ...]:
        """The stages that are trained again, first to last."""
        return self.chain.bound_stages[self.chain.names.index(self.stage) :]

    @property
    def is_stochastic(self) -> bool:
        """Whether a seed changes anything."""
        return any(self.fits[bound.name].is_stochastic for bound in self.later)

    def prepare(self) -> None:
        """What is computed once, before processes share the work."""
        for bound in self.later:
            self.fits[bound.name].prepare(bound)

    def losses(self, removals: Sequence[Removal], by: float, seed: int) -> Tensor:
        """The query loss after training again without each: float64 `[removals]`, or `[removals, queries]`.

        An empty removal is the control: all else equal, nothing removed.
        """
        first, examples = self.later[0], len(self.chain[self.stage].stage.examples)
        if self.tokens is None:
            return self._trained(first, torch.stack([leave_out(examples, removal, by) for removal in removals]), seed)
        whole = torch.ones(1, examples, dtype=torch.float64)
        masked = (without_tokens(first, self.tokens.places(removal), by) for removal in removals)
        return torch.cat([self._trained(each, whole, seed) for each in masked])

    def _trained(self, first: BoundStage, weights: Tensor, seed: int) -> Tensor:
        """The query loss of copies of the first stage with these weights `[copies, n]`, and of the later ones."""
        copies = self.fits[first.name](first, weights, None, seed)
        for bound in self.later[1:]:
            whole = torch.ones(len(weights), len(bound.stage.examples), dtype=torch.float64)
            copies = self.fits[bound.name](bound, whole, copies, seed)
        return torch.stack([self._measured(one_copy(copies, place)) for place in range(len(weights))])

    def _measured(self, values: Params) -> Tensor:
        """The query loss of one copy of the last stage, with the buffers of its own that it comes with."""
        last = self.chain.last
        moved = {name: values[name] for name, _ in last.stage.model.named_buffers() if name in values}
        if moved:
            last = replace(last, stage=with_values(last.stage, moved))
        return self.query.loss(last, values)
