"""How far the derivative of a recorded training reaches: removals are really tried, before any score is trusted.

A score is a derivative: it holds for a small enough change of an example's weight. Whether leaving examples out
altogether is small enough depends on how smooth the training was (its rates, its length), and not on the model's size
or the data. So it is measured: the training is repeated without random groups of examples, the largest groups first,
then smaller ones until the scores hold, and what the query loss really does is set beside what they said.

With S the standard deviation of the predicted effect over random groups of a size, E the root mean square of measured
minus predicted over the k groups that were tried, and b, R the slope and the residual of the measured effects against
the predicted ones, prediction and truth correlate over such groups at about

    r = S / sqrt(S^2 + E^2)              where errors are independent of predictions,
    r = b S / sqrt(b^2 S^2 + R^2)        in general: predictions may be far too large, and errors their negatives.

The smaller of both is taken. Of k errors drawn from a normal distribution, `k E^2 / chi2_k` is the variance that is
exceeded with the probability 1 - c, where `chi2_k` is the quantile of 1 - c: with it for E^2 comes the correlation that
is at least to be expected, with the confidence c. Few groups tell little: a small E may be luck, and this says so.

Of single examples a few have effects far larger than all others, and nearly all of S^2 is theirs; four at random say
nothing of them. So single examples are drawn with probabilities as the squares of their effects p_i, and each square in
the means above is weighed by S^2 / p_i^2, which makes E^2 / S^2 the mean square of their relative errors.

Sizes are tried, and not worked out from one another. Over random groups of m examples errors of second order grow as m,
those that single examples have of their own as sqrt(m) and the spread of predictions as sqrt(m), so that what holds for
m holds for fewer. How much better it holds for fewer does not follow: where training is chaotic, errors stop growing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import comb, hypot, sqrt
from typing import final

import torch
from scipy.stats import chi2
from torch import Tensor

from stagetrace.checks.finding import Finding, Level
from stagetrace.errors import refuse
from stagetrace.progress import Progress
from stagetrace.recording.link import Trains, Unrolled
from stagetrace.results import Scores
from stagetrace.stages.chain import Chain
from stagetrace.stages.stage import check_count
from stagetrace.tracing.query import Query
from stagetrace.tracing.trace import trace
from stagetrace.validation.fits.rerun import recorded_fit
from stagetrace.validation.removals import Removal, predicted_effects
from stagetrace.validation.retrain import Retraining

GOOD, POOR = 0.9, 0.7
"""Scores hold where the correlation is at least GOOD; below POOR what is expected is no use."""

CONFIDENCE = 0.9
"""Of the correlation that is at least to be expected."""

SHARES = (0.1, 0.02)
"""Of the stage's examples in a group; single examples come last."""


@final
@dataclass(frozen=True)
class Tried:
    """What training again without some random groups of one size did.

    size: how many examples a group has. predicted, measured: the change of the query loss for each group; unit: query
    loss, negative = removing helps. spread: S, the standard deviation of the predicted change over random groups.
    weights: of each one's square in means, where groups were not drawn alike; None: 1.
    """

    size: int
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    spread: float
    weights: tuple[float, ...] | None = None

    @property
    def error(self) -> float:
        """E, the root mean square of measured minus predicted."""
        return self._rms([found - said for found, said in zip(self.measured, self.predicted, strict=True)])

    @property
    def expected(self) -> float:
        """The correlation to expect between prediction and truth over random groups of this size, at least 0.

        Example:
            >>> round(Tried(100, (1.0, -1.0), (1.75, -1.75), spread=1.0).expected, 3)
            0.8
            >>> round(Tried(100, (1.0, -1.0), (0.0, 0.1), spread=1.0).expected, 3)
            0.0
        """
        return self._correlation(self.error)

    @property
    def at_least(self) -> float:
        """The correlation that is exceeded with 90 % confidence, so few groups having been tried.

        Example:
            >>> tried = Tried(100, (1.0, -1.0), (1.1, -1.1), spread=1.0)
            >>> round(tried.expected, 3), round(tried.at_least, 3)
            (0.995, 0.956)
        """
        groups = len(self.measured)
        return self._correlation(self.error * sqrt(groups / float(chi2.ppf(1 - CONFIDENCE, groups))))

    def _correlation(self, error: float) -> float:
        predicted, measured = self._rms(self.predicted), self._rms(self.measured)
        if not (self.spread and predicted and measured):
            return 0.0
        three = zip(self.predicted, self.measured, self._weights, strict=True)
        slope = sum(weight * said * found for said, found, weight in three) / len(self.measured) / predicted**2
        residual = sqrt(max(0.0, measured**2 - (slope * predicted) ** 2))
        along = slope * self.spread / hypot(slope * self.spread, residual)
        return max(0.0, min(self.spread / hypot(self.spread, error), along))

    @property
    def _weights(self) -> Sequence[float]:
        return self.weights or [1.0] * len(self.measured)

    def _rms(self, values: Sequence[float]) -> float:
        return sqrt(sum(w * value**2 for w, value in zip(self._weights, values, strict=True)) / len(values))

    def said(self, examples: int) -> str:
        """The size, and what to expect of it, in words; examples: of the stage."""
        groups = (
            "single examples, drawn by the size of their scores"
            if self.size == 1
            else f"groups of {self.size:,} ({self.size / examples:.1%})"
        )
        return f"{groups}: r about {self.expected:.2f}, at least {self.at_least:.2f} ({len(self.measured)} tried)"


@final
@dataclass(frozen=True)
class Smoothness:
    """What repeating a training without random groups of a stage's examples showed.

    stage: whose examples; examples: how many it has. tried: by the size of the groups, the largest first.
    """

    stage: str
    examples: int
    tried: tuple[Tried, ...]

    @property
    def holds_for(self) -> int:
        """Up to how many examples, removed together at random, the correlation is at least 0.9 (confidence: 90 %).

        The largest of the sizes that were tried; 0 where it is none of them.
        """
        return max((tried.size for tried in self.tried if tried.at_least >= GOOD), default=0)

    @property
    def finding(self) -> Finding:
        """The verdict in words, in the first place how far scores hold."""
        held = self.holds_for
        if held == self.tried[0].size:
            level, verdict = Level.OK, f"scores hold for up to {_several(held)} of {self.examples:,} removed at random"
            verdict += " (more were not tried)"
        elif held:
            level = Level.NOTE
            verdict = f"scores hold for up to {_several(held)} of {self.examples:,} removed at random, not for the rest"
        else:
            level, verdict = Level.WARNING, "scores were not found to hold for whole examples, only for parts of them"
        sizes = "; ".join(tried.said(self.examples) for tried in self.tried)
        text = f"{verdict}: r of prediction and truth at least {GOOD}, confidence {CONFIDENCE:.0%}. {sizes}"
        return Finding(self.stage, "smoothness", level, text if level is Level.OK else f"{text}. {ADVICE}")


ADVICE = (
    "A training is smoother with smaller rates and fewer steps (docs/exact.md); ask for smaller removals, or average "
    "over several recordings"
)


def smoothness(
    chain: Chain,
    query: Query,
    stage: str,
    *,
    shares: Sequence[float] = SHARES,
    groups: int = 4,
    seed: int = 0,
    scores: Scores | None = None,
    progress: Progress | None = None,
) -> Smoothness:
    """Repeat a chain's training without random groups of a stage's examples, and compare.

    Groups of the largest share come first; smaller ones follow, down to single examples, until the scores hold. Costs a
    trace of the stage, and for each size that is tried `groups` repetitions of its training and of each later stage's,
    with one more for what all are compared to. Of a query with several rows it is the mean.

    Args:
        stage: whose examples; it and every later stage must be recorded, or trained by steps of the library's
            (`Unrolled(shared, Steps(...))`, of which the first seed is taken).
        shares: of the stage's examples in a group. groups: how many of each size are tried, no two alike; fewer where
            there are not so many. seed: of the draw.
        scores: of the stage by `trace` of this chain and query, where they are known.

    Raises:
        DescriptionError: a stage from that one on cannot be repeated, or a setting is out of range.
        SolveError: a repetition diverged.
    """
    chain.check_names([stage], "smoothness")
    check_count(groups, "smoothness(groups=...)")
    if not isinstance(shares, Sequence) or not shares or not all(0 < share < 1 for share in shares):
        refuse(f"smoothness: shares must be numbers above 0 and below 1, such as {SHARES}, got {shares!r}")
    if not (scores is None or isinstance(scores, Scores)):
        refuse(f"smoothness: scores must be those of a trace, trace(...)['{stage}'], got a {type(scores).__name__}")
    for bound in chain.bound_stages[chain.names.index(stage) :]:
        if recorded_fit(bound) is None:
            refuse(
                f"smoothness: {bound.stage.where} is not recorded, so it cannot be repeated; give it "
                "link=Unrolled(shared, recording), or compare by stagetrace validate"
            )
    examples = len(chain[stage].stage.examples)
    if examples < 2:
        refuse(f"smoothness: {chain[stage].stage.where} has one example; without it there would be no training")
    asked = replace(query, reduction="mean") if query.reduction == "none" else query
    chain, order = _one_order(chain)
    if scores is None:
        scores = trace(chain, asked, of=[stage], progress=progress or False)[stage]
    elif scores.n_examples != examples:
        where = chain[stage].stage.where
        refuse(f"smoothness: the scores are of {scores.n_examples:,} examples, {where} has {examples:,}")
    effects = -scores.per_example / examples
    later = chain.bound_stages[chain.names.index(stage) :]
    fits = {bound.name: fit for bound in later if (fit := recorded_fit(bound)) is not None}
    again, tried, control = Retraining(chain, asked, stage, fits), list[Tried](), list[float]()
    for size in sorted({1, *(max(1, round(share * examples)) for share in shares)}, reverse=True):
        removals = drawn(examples, size, groups, seed) if size > 1 else drawn_by_size(effects, groups, seed)
        losses = again.losses([*([] if control else [()]), *removals], 1.0, order).tolist()
        control = control or losses[:1]
        predicted = tuple(predicted_effects(effects, removals, 1.0).tolist())
        measured = tuple(loss - control[0] for loss in losses[-len(removals) :])
        spread = float(effects.std()) * sqrt(size * (1 - size / examples))
        weights = tuple((spread / said) ** 2 if said else 0.0 for said in predicted) if size == 1 else None
        tried.append(Tried(size, predicted, measured, spread, weights))
        if tried[-1].at_least >= GOOD:
            break
    return Smoothness(stage, examples, tuple(tried))


def drawn(examples: int, size: int, count: int, seed: int) -> list[Removal]:
    """Random groups of examples, no two alike; all that there are, where these are fewer than `count`."""
    generator = torch.Generator().manual_seed(seed)
    found = dict[Removal, None]()
    while len(found) < min(count, comb(examples, size)):
        found[tuple(sorted(torch.randperm(examples, generator=generator)[:size].tolist()))] = None
    return list(found)


def drawn_by_size(effects: Tensor, count: int, seed: int) -> list[Removal]:
    """Single examples, no two alike, with probabilities as the squares of their effects `[n]`."""
    chances = effects.square() / effects.square().sum()
    there = int((chances > 0).sum())
    if not there:
        return drawn(len(effects), 1, count, seed)
    generator = torch.Generator().manual_seed(seed)
    return [(index,) for index in torch.multinomial(chances, min(count, there), generator=generator).tolist()]


def findings_of_smoothness(chain: Chain, query: Query, progress: Progress) -> Iterator[Finding]:
    """The verdict on each stage that can be repeated: it and every later stage are recorded.

    Raises:
        DescriptionError: there is none.
    """
    repeated = [recorded_fit(bound) is not None for bound in chain]
    stages = [name for place, name in enumerate(chain.names) if all(repeated[place:])]
    if not stages:
        refuse(
            f"smoothness: {chain.last.stage.where} is not recorded, so nothing can be repeated; give it "
            "link=Unrolled(shared, recording), or compare by stagetrace validate"
        )
    for name in stages:
        yield smoothness(chain, query, name, progress=progress).finding


def _one_order(chain: Chain) -> tuple[Chain, int]:
    """The chain with one seed for stages that the library trains, and that seed."""
    stages, order = [bound.stage for bound in chain], 0
    for place, bound in enumerate(chain):
        link = bound.stage.link
        if isinstance(link, Unrolled) and isinstance(bound.recording, Trains):
            order = link.seeds[0]
            stages[place] = replace(bound.stage, link=replace(link, seeds=(order,)))
    return Chain(*stages), order


def _several(count: int) -> str:
    return "1 example" if count == 1 else f"{count:,} examples"
