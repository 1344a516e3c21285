"""Which tokens' scores are kept: the largest of a part, and all those of the examples at both ends of its ranking.

Tokens go in batch by batch and are let go as soon as they cannot be among the kept ones, so that memory holds a few
times what is kept. What comes out depends on the scores alone, not on batches, their order or processes: the largest
of all are among the largest of those seen so far, and so are the ends.
"""

from typing import final

import torch
from torch import Tensor

from stagetrace.parallel import world
from stagetrace.results.token_parts import TokenPart
from stagetrace.results.tokens import ENDS, REST
from stagetrace.stages.predicted import Tokens

__all__ = ["Sieve", "added_up"]

ROOM = 2**20
"""Tokens that are held beyond those that will be kept, before some are let go."""

UNSEEN = -1
"""The count of tokens of an example that has not come by."""


def added_up(values: Tensor, *, parts: bool) -> Tensor:
    """`[columns, n]` with the paper's two parts added up, where they were kept apart."""
    return torch.stack(values.chunk(2)).sum(dim=0) if parts else values


@final
class Sieve:
    """The tokens of one part's examples.

    Args:
        examples: of the part, consecutive.
        columns: scores of each token, one for each query.
        quota: tokens that are kept, beside those of the examples at the ends.
    """

    def __init__(self, examples: range, columns: int, quota: int) -> None:
        self.examples, self.columns, self.quota = examples, columns, quota
        self._held, self._largest = list[Tokens](), 0.0
        self._values = torch.zeros(columns, len(examples), dtype=torch.float64)
        self._counts = torch.full((len(examples),), UNSEEN)

    def add(self, tokens: Tokens, indices: Tensor, values: Tensor) -> None:
        """Tokens of some examples, all that these have; indices: of the examples, `[n]`; values: theirs, `[k, n]`."""
        places = indices - self.examples.start
        self._values[:, places] = values.double()
        self._counts[places] = 0
        self._counts.index_add_(0, tokens.index - self.examples.start, torch.ones_like(tokens.index))
        self._held.append(Tokens(tokens.index, tokens.position, tokens.token, tokens.values.float()))
        if sum(map(len, self._held)) > 2 * self.quota + ROOM:
            self._held = [self._pruned(Tokens.joined(self._held, self.columns))]

    def result(self, *, reduced: bool) -> TokenPart:
        """What is kept, of all processes, with a row for the rest of each example of which some was left out.

        reduced: one score a token, for a query that was reduced to one number.
        """
        mine = Tokens.joined(self._held, self.columns), self._values, self._counts, self._largest
        held, values, counts, largest = zip(*world().gather(mine), strict=True)
        self._values, self._largest = torch.stack(values).sum(dim=0), max(largest)
        self._counts = torch.stack(counts).amax(dim=0)
        kept = self._pruned(Tokens.joined(list(held), self.columns))
        whole = Tokens.joined([kept, self._rest(kept)], self.columns)
        values = whole.values[0] if reduced else whole.values
        scored = int(self._counts.clamp_min(0).sum())
        return TokenPart(whole.index, whole.position, whole.token, values, scored, self._largest)

    def _pruned(self, tokens: Tokens) -> Tokens:
        """Those that are still among the kept ones; tokens: ordered, so that of equal sizes the first are kept."""
        if int(self._counts.clamp_min(0).sum()) <= self.quota:
            return tokens
        sizes = tokens.values.abs().amax(dim=0)
        keep = torch.isin(tokens.index, self._ends())
        keep[sizes.sort(descending=True, stable=True).indices[: self.quota]] = True
        if not bool(keep.all()):
            self._largest = max(self._largest, float(sizes[~keep].max()))
        return tokens.at(keep)

    def _ends(self) -> Tensor:
        """The examples at both ends, by each query's scores and by their mean."""
        seen = (self._counts != UNSEEN).nonzero().flatten()
        values = self._values[:, seen]
        ranked = torch.cat([values, values.mean(dim=0, keepdim=True)])
        ends = [ranked.sort(dim=1, descending=d, stable=True).indices[:, :ENDS] for d in (True, False)]
        return self.examples.start + seen[torch.cat(ends, dim=1).unique()]

    def _rest(self, kept: Tokens) -> Tokens:
        """A row for each example of which not all was kept: its score less those of its tokens."""
        places = kept.index - self.examples.start
        counts = torch.bincount(places, minlength=len(self.examples))
        lacking = (counts < self._counts).nonzero().flatten()
        sums = torch.zeros_like(self._values).index_add_(1, places, kept.values.double())
        rest = torch.full_like(lacking, REST)
        return Tokens(lacking + self.examples.start, rest, rest, (self._values - sums)[:, lacking].float())
