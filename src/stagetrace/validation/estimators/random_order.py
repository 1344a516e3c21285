"""A random ranking: what any estimator has to beat."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.progress import Progress
from stagetrace.stages.chain import Chain
from stagetrace.tracing.query import Query
from stagetrace.validation.estimators.estimator import check_name
from stagetrace.validation.token_masks import TokenNumbers


@final
@dataclass(frozen=True)
class Random:
    """Standard normal draws, one for each example (and query): the same on every machine for the same seed.

    Sign: as for every estimator. Unit: none.

    Raises:
        DescriptionError: a seed that is no whole number.

    Example:
        >>> Random(seed=1).name, Random().unit is None
        ('random', True)
    """

    seed: int = 0
    name: str = "random"

    def __post_init__(self) -> None:
        check_name("Random", self.name)
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            refuse(f"Random(seed=...) must be a whole number, got {self.seed!r}")

    @property
    def unit(self) -> str | None:
        return None

    def removal_effects(self, chain: Chain, query: Query, stage: str, progress: Progress | None = None) -> Tensor:
        """As `Estimator` says; neither model nor data is read."""
        del progress
        chain.check_names([stage], self.name)
        examples, rows = len(chain[stage].stage.examples), query.rows
        shape = (examples,) if rows is None else (rows, examples)
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)

    def token_effects(self, chain: Chain, query: Query, stage: str, progress: Progress | None = None) -> Tensor:
        """As `TokenEstimator` says; the labels are read."""
        del query
        tokens = len(TokenNumbers.of(chain[stage], progress))
        return torch.randn(tokens, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
