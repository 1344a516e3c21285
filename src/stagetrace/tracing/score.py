"""Scores of a stage's examples from its adjoints, part by part."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, final

import torch
from torch import Tensor

from stagetrace.curvature.subset import seeded_subset
from stagetrace.parallel import world
from stagetrace.progress import KEPT, Progress
from stagetrace.results.parts import Part, part_size
from stagetrace.stages.data import Batch, positions
from stagetrace.stages.halves import by_halves
from stagetrace.stages.predicted import Tokens
from stagetrace.stages.risk import Risk, check_finite
from stagetrace.taps import Tapped
from stagetrace.tracing.contract import Way, choose, contraction, forward_passes
from stagetrace.tracing.room import fitting

PROBED = 6
"""Examples, drawn by a seed, on which a way to contract is compared with plain autograd."""


@final
@dataclass(frozen=True)
class Scorer:
    """Scores of one stage: `-(d loss_i / d trained) . adjoint`; positive = harmful; unit: query loss.

    adjoints: `[trained.size, k]`; k is 1 or the number of queries, twice that when the paper's parts are kept apart
        (the columns that reached the query through shared parameters first, then those through the head).
    rows: the number of queries, or None for one score per example.
    tapped: the model, where the way is layer by layer. most: examples at once, where that is less than a batch.
    """

    risk: Risk
    adjoints: Tensor
    parts: bool
    rows: int | None
    way: Way
    why: str
    tapped: Tapped | None = None
    most: int | None = None

    @staticmethod
    def of(risk: Risk, adjoints: Tensor, *, parts: bool, rows: int | None) -> "Scorer":
        """Probe the model on a few examples, the first and others drawn by a seed, and decide how to contract."""
        total = len(risk.examples)
        probed = sorted({*range(min(2, total)), *seeded_subset(total, PROBED, seed=0)})
        with world().together(f"looking how to score {risk.where}"):
            probe = next(iter(risk.read([probed])))
            found = choose(risk, probe, adjoints.shape[1])
            most = None if found.tapped is None else fitting(found.tapped, probe)
        return Scorer(risk, adjoints, parts, rows, found.way, found.why, found.tapped, most)

    @cached_property
    def contract(self) -> Callable[[Batch], tuple[Tensor, Tensor]]:
        """Losses `[batch]` and contractions `[batch, k]`; the adjoints are laid out for it once."""
        return contraction(self.way, self.risk, self.adjoints, self.tapped)

    @property
    def at_once(self) -> int:
        """Examples that are scored at once."""
        size = self.risk.examples.batch_size
        return size if self.most is None else min(size, self.most)

    @property
    def forward_passes(self) -> float:
        """What scoring the stage costs, counted in forward passes over one example."""
        return forward_passes(self.way, self.adjoints.shape[1]) * len(self.risk.examples)

    def run(
        self, kept: Callable[[int], Part | None], keep: Callable[[int, Part], None], progress: Progress
    ) -> Iterator[Part]:
        """Every part of the stage, in order, as it is done: saved ones are read, the others are computed and saved.

        Raises:
            DataError: an example's loss is NaN or infinite.
        """
        total, size = len(self.risk.examples), part_size(self.rows)
        with progress.task(f"scoring {self.risk.where}", total, "examples") as advance:
            for number, start in enumerate(range(0, total, size)):
                part = kept(number)
                if part is None:
                    part = self.part(range(start, min(total, start + size)), advance)
                    keep(number, part)
                else:
                    advance(part.stop - part.start, note=KEPT)
                yield part

    def part(self, indices: range, advance: Callable[..., None]) -> Part:
        """Score some consecutive examples, their batches shared out over processes."""
        scored, what = world().shard(indices), f"scoring {self.risk.where}"
        # one block for all, so that small results do not fragment the memory between the batches' large intermediates
        losses = self.adjoints.new_empty(len(scored))
        dots = self.adjoints.new_empty(len(scored), self.adjoints.shape[1])
        with world().together(what, self.adjoints):
            batches = self.risk.read_by_size(scored, self.at_once)
            for batch, found in by_halves(self.risk, "scoring", batches, self.contract):
                here = positions([index - scored[0] for index in batch.indices])
                losses[here], dots[here] = found
                advance(len(batch) * world().size)
            # checked once a part, so that an accelerator is not waited for after every batch
            check_finite(losses, scored, self.risk.where)
            check_finite(dots.sum(dim=1), scored, self.risk.where, "the score")
        # a matrix holds as many digits as the parameters do, at least those of float32; single numbers are float64
        dtype = torch.float64 if self.rows is None else torch.promote_types(dots.dtype, torch.float32)
        scores = world().joined(dots.neg_()).to("cpu", dtype).mT  # [k, examples of the part]
        return as_part(indices.start, scores, len(self.risk.examples), parts=self.parts, rows=self.rows)


@final
@dataclass(frozen=True)
class SumScorer:
    """Scores that are sums: each term by a scorer of the same examples, at parameters of its own."""

    terms: tuple[Scorer, ...]

    @staticmethod
    def of(risks: Sequence[Risk], adjoints: Sequence[Tensor], *, parts: bool, rows: int | None) -> "SumScorer":
        """risks, adjoints: of each term, as for `Scorer.of`."""
        terms = zip(risks, adjoints, strict=True)
        return SumScorer(tuple(Scorer.of(risk, adjoint, parts=parts, rows=rows) for risk, adjoint in terms))

    @property
    def way(self) -> Way:
        return self.terms[-1].way

    @property
    def why(self) -> str:
        return f"{self.terms[-1].why}; a sum over {len(self.terms)} segments of the training"

    @property
    def forward_passes(self) -> float:
        return sum(term.forward_passes for term in self.terms)

    def run(
        self, kept: Callable[[int], Part | None], keep: Callable[[int, Part], None], progress: Progress
    ) -> Iterator[Part]:
        """Every part of the stage, in order; a part is kept once all its terms are there.

        Raises:
            DataError: an example's loss is NaN or infinite.
        """
        first, *others = self.terms
        total, size = len(first.risk.examples), part_size(first.rows)
        with progress.task(f"scoring {first.risk.where}", total * len(self.terms), "examples") as advance:
            for number, start in enumerate(range(0, total, size)):
                part = kept(number)
                if part is None:
                    indices = range(start, min(total, start + size))
                    part = first.part(indices, advance)
                    for term in others:
                        part = part.plus(term.part(indices, advance))
                    keep(number, part)
                else:
                    advance((part.stop - part.start) * len(self.terms), note=KEPT)
                yield part


@final
@dataclass(frozen=True)
class WeightScorer:
    """Scores that came out of the walk back itself: `n dq/dw_i`, float64 `[n, k]`; other fields as in `Scorer`.

    tokens: `dq/dw_it`, with a weight for each token's loss; None where the losses were not taken apart.
    """

    risk: Risk
    scores: Tensor
    parts: bool
    rows: int | None
    tokens: Callable[[], Tokens] | None = None
    way: Literal["recorded steps"] = "recorded steps"
    why: str = "they come with the derivative through the training"
    forward_passes: float = 0.0

    def run(
        self, kept: Callable[[int], Part | None], keep: Callable[[int, Part], None], progress: Progress
    ) -> Iterator[Part]:
        """Every part of the stage, in order.

        Raises:
            DataError: a score is NaN or infinite.
        """
        del progress
        total, size = len(self.risk.examples), part_size(self.rows)
        self.check()
        for number, start in enumerate(range(0, total, size)):
            part = kept(number)
            if part is None:
                part = self.part(range(start, min(total, start + size)))
                keep(number, part)
            yield part

    def check(self) -> None:
        """Refuse scores that are NaN or infinite."""
        check_finite(self.scores.sum(dim=1), range(len(self.scores)), self.risk.where, "the score")

    def part(self, indices: range) -> Part:
        """The scores of some consecutive examples."""
        scores = self.scores[indices.start : indices.stop].mT
        return as_part(indices.start, scores, len(self.risk.examples), parts=self.parts, rows=self.rows)


def as_part(start: int, scores: Tensor, examples: int, *, parts: bool, rows: int | None) -> Part:
    """`[k, n]` scores as a part: one row or many, the paper's two terms apart where asked for."""
    halves = [half if rows is not None else half[0] for half in scores.chunk(2 if parts else 1)]
    if not parts:
        return Part(start, halves[0].contiguous(), examples)
    shared, head = (half.contiguous() for half in halves)
    return Part(start, shared + head, examples, shared, head)
