"""Scores of a stage's tokens, and of its examples as their sums, part by part."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import ceil
from typing import final

import torch
from torch import Tensor

from stagetrace.parallel import world
from stagetrace.progress import KEPT, Progress
from stagetrace.results import RunFolder
from stagetrace.results.parts import Part, part_size
from stagetrace.results.token_parts import TokenPart
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.data import Batch
from stagetrace.stages.halves import by_halves
from stagetrace.stages.predicted import Tokens
from stagetrace.stages.risk import Risk, check_finite
from stagetrace.tracing.score import Scorer, SumScorer, WeightScorer, as_part
from stagetrace.tracing.sieve import Sieve, added_up
from stagetrace.tracing.token_files import TokenFiles
from stagetrace.tracing.token_losses import TokenWay
from stagetrace.tracing.token_recorded import RecordedTokenScorer
from stagetrace.tracing.token_terms import TokenTerms

__all__ = ["TokenScorer", "token_scorer"]


def token_scorer(
    scorer: object, bound: BoundStage, most: int, folder: RunFolder
) -> "TokenScorer | RecordedTokenScorer":
    """What scores a stage's tokens, and its examples as sums of them, in place of what scores its examples.

    Raises:
        DescriptionError, DifferentiationError: as `token_way`.
    """
    files = TokenFiles(folder, bound.name, len(bound.stage.examples))
    if isinstance(scorer, WeightScorer):
        return RecordedTokenScorer(scorer, most, files)
    assert isinstance(scorer, (Scorer, SumScorer))  # `token_stages` has refused all others
    return TokenScorer.of(scorer, most, files)


@final
@dataclass(frozen=True)
class TokenScorer:
    """Scores of one stage's tokens: `-(d loss_it / d trained) . adjoint`; positive = harmful; unit: query loss.

    terms: the losses and adjoints whose contractions are summed, as in `Scorer` and `SumScorer`.
    most: tokens of the stage that are kept beside those of the examples at the ends; parts, rows: as in `Scorer`.
    found: what was kept of each part that `run` has been through.
    """

    terms: TokenTerms
    parts: bool
    rows: int | None
    most: int
    files: TokenFiles
    why: str = "a score for each token was asked for"
    found: dict[int, TokenPart] = field(default_factory=dict[int, TokenPart])

    @staticmethod
    def of(scorer: Scorer | SumScorer, most: int, files: TokenFiles) -> "TokenScorer":
        """Token by token what the scorer does example by example.

        Raises:
            DescriptionError, DifferentiationError: as `token_way`.
        """
        each = scorer.terms if isinstance(scorer, SumScorer) else (scorer,)
        terms = TokenTerms.of([(term.risk, term.adjoints) for term in each])
        return TokenScorer(terms, each[0].parts, each[0].rows, most, files)

    @property
    def risk(self) -> Risk:
        """The losses at the stage's outcome."""
        return self.terms.risk

    @property
    def way(self) -> TokenWay:
        return self.terms.way

    @property
    def forward_passes(self) -> float:
        """What scoring the stage costs, counted in forward passes over one example."""
        return len(self.terms.each) * (1.0 + 2 * self.terms.columns) * len(self.risk.examples)

    def run(
        self, kept: Callable[[int], Part | None], keep: Callable[[int, Part], None], progress: Progress
    ) -> Iterator[Part]:
        """Every part of the stage, in order, as it is done: saved ones are read, the others are computed and saved.

        Raises:
            DataError: an example's loss or score is NaN or infinite.
        """
        total, size = len(self.risk.examples), part_size(self.rows)
        with progress.task(f"scoring tokens of {self.risk.where}", total, "examples") as advance:
            for number, start in enumerate(range(0, total, size)):
                part, tokens = kept(number), self.files.kept(number)
                if part is None or tokens is None:
                    part, tokens = self._part(range(start, min(total, start + size)), advance)
                    self.files.keep(number, tokens)  # first: a part without its tokens would be computed again
                    keep(number, part)
                else:
                    advance(part.stop - part.start, note=KEPT)
                self.found[number] = tokens
                yield part

    def _part(self, indices: range, advance: Callable[..., None]) -> tuple[Part, TokenPart]:
        """Some consecutive examples, their batches shared out over processes."""
        risk, scored, what = self.risk, world().shard(indices), f"scoring tokens of {self.risk.where}"
        columns, like = self.terms.columns, self.terms.each[0][1]
        losses = torch.empty(len(scored), dtype=torch.float64)
        values = torch.empty(len(scored), columns, dtype=torch.float64)
        quota = ceil(self.most * len(indices) / len(risk.examples))
        sieve = Sieve(indices, columns // 2 if self.parts else columns, quota)
        with world().together(what, like):
            for batch, (lost, found) in by_halves(
                risk, "scoring tokens", risk.read_by_size(scored), self.terms.contracted
            ):
                here = torch.tensor([index - scored[0] for index in batch.indices])
                losses[here], values[here] = lost.double().sum(dim=1).cpu(), found.double().sum(dim=1).cpu()
                sieve.add(self._whole_of(batch, found), here + scored[0], added_up(values[here].mT, parts=self.parts))
                advance(len(batch) * world().size)
            check_finite(losses, scored, risk.where)
            check_finite(values.sum(dim=1), scored, risk.where, "the score")
        tokens = sieve.result(reduced=self.rows is None)
        dtype = torch.float64 if self.rows is None else torch.promote_types(like.dtype, torch.float32)
        scores = world().joined(values).to(dtype).mT
        return as_part(indices.start, scores, len(risk.examples), parts=self.parts, rows=self.rows), tokens

    def _whole_of(self, batch: Batch, scores: Tensor) -> Tokens:
        """The predicted tokens of a batch with their whole scores."""
        tokens = self.terms.tokens(batch, scores)
        return replace(tokens, values=added_up(tokens.values, parts=self.parts))
