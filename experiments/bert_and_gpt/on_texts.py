"""A control that reads the texts themselves, where the stages' own examples are numbers of tokens."""

from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from stagetrace import Chain, Query
from stagetrace.progress import Progress
from stagetrace.validation import Estimator


@final
@dataclass(frozen=True)
class OnTexts:
    """An estimator on the rows behind stages and query of `stagetrace.hf`, such as `OnTexts(BM25("text"))`."""

    inner: Estimator

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def unit(self) -> str | None:
        return self.inner.unit

    def removal_effects(self, chain: Chain, query: Query, stage: str, progress: Progress | None = None) -> Tensor:
        plain = Chain(*(replace(each, data=each.data.rows, collate=list) for each in chain.stages))
        asked = replace(query, data=query.data.rows, collate=list)
        return self.inner.removal_effects(plain, asked, stage, progress)
