"""Scores of the tokens of a stage whose training was recorded: they come with the derivative through its steps."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil
from typing import final

import torch

from stagetrace.parallel import world
from stagetrace.progress import KEPT, Progress
from stagetrace.results.parts import Part, part_size
from stagetrace.results.token_parts import TokenPart
from stagetrace.stages.predicted import Tokens
from stagetrace.tracing.score import WeightScorer
from stagetrace.tracing.sieve import Sieve, added_up
from stagetrace.tracing.token_files import TokenFiles

__all__ = ["RecordedTokenScorer"]


@final
@dataclass(frozen=True)
class RecordedTokenScorer:
    """`n dq/dw_it`, w_it the weight of a token's loss in every batch that its example was in; positive = harmful.

    They sum to the example's score. A token counts wherever its example was trained on; where an example was read anew
    each time (masks), each token that was ever predicted at a position has a score of its own.

    scorer: of the examples. most, files, found: as in `TokenScorer`.
    """

    scorer: WeightScorer
    most: int
    files: TokenFiles
    found: dict[int, TokenPart] = field(default_factory=dict[int, TokenPart])

    @property
    def way(self) -> str:
        return self.scorer.way

    @property
    def why(self) -> str:
        return self.scorer.why

    @property
    def forward_passes(self) -> float:
        return self.scorer.forward_passes

    @cached_property
    def tokens(self) -> Tokens:
        """All of them, with a score for each column."""
        assert self.scorer.tokens is not None
        slopes = self.scorer.tokens()
        return replace(slopes, values=slopes.values * len(self.scorer.risk.examples))

    def run(
        self, kept: Callable[[int], Part | None], keep: Callable[[int, Part], None], progress: Progress
    ) -> Iterator[Part]:
        """Every part of the stage, in order, as `TokenScorer.run`.

        Raises:
            DataError: a score is NaN or infinite.
        """
        scorer, total = self.scorer, len(self.scorer.risk.examples)
        scorer.check()
        size = part_size(scorer.rows)
        with progress.task(f"keeping tokens of {scorer.risk.where}", total, "examples") as advance:
            for number, start in enumerate(range(0, total, size)):
                part, tokens, indices = kept(number), self.files.kept(number), range(start, min(total, start + size))
                if part is None or tokens is None:
                    part, tokens = scorer.part(indices), self._kept_of(indices)
                    self.files.keep(number, tokens)  # first: a part without its tokens would be computed again
                    keep(number, part)
                    advance(len(indices))
                else:
                    advance(len(indices), note=KEPT)
                self.found[number] = tokens
                yield part

    def _kept_of(self, indices: range) -> TokenPart:
        """Which tokens of some consecutive examples are kept; every process has them all, and the first gives them."""
        scorer = self.scorer
        scores = added_up(scorer.scores[indices.start : indices.stop].mT, parts=scorer.parts)
        tokens = self.tokens  # by all processes together: a run that goes on walks through the steps once more
        sieve = Sieve(indices, len(scores), ceil(self.most * len(indices) / len(scorer.risk.examples)))
        if world().is_first:
            own = tokens.at((tokens.index >= indices.start) & (tokens.index < indices.stop))
            whole = replace(own, values=added_up(own.values, parts=scorer.parts))
            sieve.add(whole, torch.arange(indices.start, indices.stop), scores)
        return sieve.result(reduced=scorer.rows is None)
