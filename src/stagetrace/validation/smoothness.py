"""How far the derivative of a recorded training reaches: two removals are really tried, before any score is trusted.

A score is a derivative: it holds for a small enough change of an example's weight. Whether leaving examples out
altogether is small enough depends on how smooth the training was (its rates, its length, the optimiser's epsilon), and
not on the model's size or the data. So it is measured: the recorded training is repeated without random groups of
examples, and what the query loss really does is set beside what the scores said.

With S the standard deviation of the predicted effect over random groups of a size, M the root mean square of what is
measured, and E that of measured minus predicted, prediction and truth correlate over such groups at about

    r = S / sqrt(S^2 + E^2)                 where errors are independent of predictions (then M^2 = S^2 + E^2),
    r = (S^2 + M^2 - E^2) / (2 S M)         in general: predictions may be far too large, and errors their negatives.

The smaller of both is taken. Errors are of second order in what is removed: over random groups of m examples they grow
as m, and S as sqrt(m).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import hypot, inf, sqrt
from typing import final

from stagetrace.checks.finding import Finding, Level
from stagetrace.errors import refuse
from stagetrace.progress import Progress
from stagetrace.recording import Recorded
from stagetrace.stages.chain import Chain
from stagetrace.tracing.query import Query
from stagetrace.tracing.trace import trace
from stagetrace.validation.fits.rerun import Rerun
from stagetrace.validation.removals import GroupRemovals, predicted_effects
from stagetrace.validation.retrain import Retraining

GOOD, POOR = 0.95, 0.7
"""The correlations from which scores are said to hold, and below which they are said not to."""


@final
@dataclass(frozen=True)
class Smoothness:
    """What repeating a recorded training without random groups of a stage's examples showed.

    stage: whose examples; examples: how many it has; size: how many a group has.
    predicted, measured: the change of the query loss for each group; unit: query loss, negative = removing helps.
    spread: S, the standard deviation of the predicted change over random groups of that size.
    """

    stage: str
    examples: int
    size: int
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    spread: float

    @property
    def error(self) -> float:
        """E, the root mean square of measured minus predicted."""
        gaps = [(found - said) ** 2 for found, said in zip(self.measured, self.predicted, strict=True)]
        return sqrt(sum(gaps) / len(gaps))

    def correlation(self, size: int | None = None) -> float:
        """The correlation to expect between prediction and truth over random groups of so many examples.

        For the size that was tried it follows from what was measured; for others by how errors grow.

        Example:
            >>> tried = Smoothness("a", 1000, 100, (1.0, -1.0), (1.75, -1.75), spread=1.0)
            >>> round(tried.correlation(), 3), round(tried.correlation(25), 3)
            (0.8, 0.936)
            >>> round(Smoothness("a", 1000, 100, (1.0, -1.0), (0.0, 0.1), spread=1.0).correlation(), 3)
            0.0
        """
        ratio = self._error_ratio * sqrt((self.size if size is None else size) / self.size)
        return 1 / hypot(1, ratio)

    @property
    def _error_ratio(self) -> float:
        """`sqrt(1 / r^2 - 1)` at the size that was tried: errors over the spread, as if they were independent."""
        spread, error = self.spread, self.error
        if not spread:
            return inf
        measured = sqrt(sum(found**2 for found in self.measured) / len(self.measured))
        along = (spread**2 + measured**2 - error**2) / (2 * spread * measured) if measured else 0.0
        r = min(spread / hypot(spread, error), along)
        return sqrt(1 / r**2 - 1) if r > 0 else inf

    @property
    def holds_for(self) -> int:
        """Up to how many examples, removed together at random, the expected correlation is at least 0.95.

        Never more than were tried: beyond that errors may grow faster.
        """
        allowed = sqrt(1 / GOOD**2 - 1)
        if self._error_ratio <= allowed:
            return self.size
        return int(self.size * (allowed / self._error_ratio) ** 2)

    @property
    def finding(self) -> Finding:
        """The verdict in words."""
        here, share = self.correlation(), self.size / self.examples
        text = (
            f"repeated without {len(self.measured)} random groups of {self.size:,} of {self.examples:,} examples "
            f"({share:.0%}), the training changed the query loss by "
            f"{', '.join(f'{found:+.2e}' for found in self.measured)}, predicted were "
            f"{', '.join(f'{said:+.2e}' for said in self.predicted)}: expect r about {here:.2f} for groups of that "
            f"size, and 0.95 or more for up to {self.holds_for:,} examples"
        )
        if self.holds_for == 0:
            text += " (not even one; parts of an example at most)"
        if here >= GOOD:
            return Finding(self.stage, "smoothness", Level.OK, text + " (more were not tried)")
        advice = (
            "; a training is smoother with smaller rates, fewer steps, warm-up and a larger epsilon of the optimiser; "
            "ask for smaller removals, or average over several recordings"
        )
        level = Level.WARNING if here < POOR else Level.NOTE
        return Finding(self.stage, "smoothness", level, text + advice)


def smoothness(
    chain: Chain,
    query: Query,
    stage: str,
    *,
    share: float = 0.1,
    groups: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> Smoothness:
    """Repeat a chain's recorded training without random groups of a stage's examples, and compare.

    Costs a trace of the stage and `groups` + 1 repetitions of its training and of each later stage's.

    Args:
        stage: whose examples; it and every later stage must be recorded.
        share: of the stage's examples in a group; groups: how many are tried. seed: of the draw.

    Raises:
        DescriptionError: a stage from that one on is not recorded, or a setting is out of range.
        SolveError: a repetition diverged.
    """
    chain.check_names([stage], "smoothness")
    later = chain.bound_stages[chain.names.index(stage) :]
    for bound in later:
        if not isinstance(bound.recording, Recorded):
            refuse(
                f"smoothness: {bound.stage.where} is not recorded, so it cannot be repeated; give it "
                "link=Unrolled(shared, recording), or compare by stagetrace validate"
            )
    mean = query if query.reduction == "mean" else replace(query, reduction="mean")
    examples = len(chain[stage].stage.examples)
    effects = trace(chain, mean, of=[stage], progress=progress or False)[stage].removal_effect
    removals = GroupRemovals(share, groups, seed).removals(examples, effects)
    again = Retraining(chain, mean, stage, {bound.name: Rerun() for bound in later})
    control, *losses = again.losses([(), *removals], 1.0, seed).tolist()
    size = len(removals[0])
    return Smoothness(
        stage,
        examples,
        size,
        tuple(predicted_effects(effects, removals, 1.0).tolist()),
        tuple(loss - control for loss in losses),
        float(effects.std()) * sqrt(size * (1 - size / examples)) if examples > 1 else 0.0,
    )


def findings_of_smoothness(chain: Chain, query: Query, progress: Progress) -> Iterator[Finding]:
    """The verdict on each stage that can be repeated: it and every later stage are recorded.

    Raises:
        DescriptionError: there is none.
    """
    recorded = [isinstance(bound.recording, Recorded) for bound in chain]
    stages = [name for place, name in enumerate(chain.names) if all(recorded[place:])]
    if not stages:
        refuse(
            f"smoothness: {chain.last.stage.where} is not recorded, so nothing can be repeated; give it "
            "link=Unrolled(shared, recording), or compare by stagetrace validate"
        )
    for name in stages:
        yield smoothness(chain, query, name, progress=progress).finding
