"""Which of a stage's examples its curvature averages over, and the default rule.

The rule: all of up to 1,000 examples; of more, 1,000 drawn by the seed. An example of many predictions, as a text is of
its tokens, counts for more: then as many examples as hold 8,000 predictions, but no fewer than 250. For the coupling
between stages it is 40,000 examples over the number of right-hand sides. Of examples with uneven weights all of these
numbers are more, until what is drawn scatters as little as so many examples of equal weights.

The accuracy of a mean over a subset depends on the size of the subset, not of the data set. With
100 or 300 images instead of 1,000 the Hessian was more indefinite, the damping followed, and the scores predicted
retraining less (`docs/how-to-choose.md`).
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch

from stagetrace.errors import refuse
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.stage import check_count

Count = int | Literal["auto"] | None
"""A number of examples; "auto" is the rule's, None is all of them."""

ENOUGH = 1000
"""Examples that a curvature averages over by default."""

PREDICTIONS, FEWEST = 8000, 250
"""Predictions that suffice where an example holds many of them, and examples that are needed in any case."""

COUPLED = 40_000
"""Examples times right-hand sides that the coupling to the stage before takes by default: about as many as a solve
multiplies. The coupling is a mean that largely cancels, so it needs more examples than a curvature."""


def seeded_subset(total: int, examples: Count, seed: int) -> Sequence[int]:
    """`examples` of `total` indices, ascending, the same on every machine for the same seed.

    Example:
        >>> list(seeded_subset(4, None, seed=0)), len(seeded_subset(100, 10, seed=0))
        ([0, 1, 2, 3], 10)
        >>> len(seeded_subset(500, "auto", seed=0)), len(seeded_subset(20_000, "auto", seed=0))
        (500, 1000)
    """
    count = ENOUGH if examples == "auto" else examples
    if count is None or count >= total:
        return range(total)
    generator = torch.Generator().manual_seed(seed)
    return sorted(torch.randperm(total, generator=generator)[:count].tolist())


def subset(bound: BoundStage, examples: Count, seed: int) -> Sequence[int]:
    """The indices of a stage's examples that a curvature averages over.

    Raises:
        DescriptionError: all of those drawn have the weight 0.
    """
    count = enough(bound) if examples == "auto" and len(bound.stage.examples) > FEWEST else examples
    return weighed_subset(bound, weighed(bound, count) if examples == "auto" else count, seed)


def weighed_subset(bound: BoundStage, examples: Count, seed: int) -> Sequence[int]:
    """`seeded_subset` of a stage's examples, some of which have to count.

    Raises:
        DescriptionError: all of those drawn have the weight 0, so that their mean says nothing.
    """
    chosen, weights = seeded_subset(len(bound.stage.examples), examples, seed), bound.stage.example_weights
    if weights is not None and not bool(weights[list(chosen)].any()):
        refuse(
            f"{bound.stage.where}: the {len(chosen):,} of {len(weights):,} examples that are drawn for the curvature "
            f"all have the weight 0; type examples=None (--solve examples=all), which takes all, or leave examples of "
            "weight 0 out of the data"
        )
    return chosen


def weighed(bound: BoundStage, count: Count) -> Count:
    """As many examples as are worth `count` of equal weights: over `(sum w)^2 / (n sum w^2)`, Kish's design effect.

    Source: Kish (1965), Survey Sampling, section 11.7.
    """
    weights = bound.stage.example_weights
    if weights is None or not isinstance(count, int):
        return count
    even = float(weights.mean().square() / weights.square().mean())
    return min(len(weights), math.ceil(count / even))


def enough(bound: BoundStage) -> int:
    """How many examples the rule takes of a stage that has many."""
    of_one = bound.risk.predictions
    return ENOUGH if of_one == 1 else min(ENOUGH, max(FEWEST, PREDICTIONS // of_one))


def subset_text(chosen: int, total: int, examples: Count, seed: int, weight: float | None = None) -> str:
    """How many examples a curvature averages over, as text, and by default how to take all.

    weight: their mean weight, over that of all examples; None where examples have none.

    Example:
        >>> subset_text(50, 20_000, 50, seed=3)
        'the curvature is the mean over 50 of 20,000 examples, drawn by seed 3'
    """
    text = f"the curvature is the mean over {chosen:,} of {total:,} examples, drawn by seed {seed}"
    if weight is not None:
        text = f"{text}, whose mean weight is {weight:.3g} times that of all"
    if examples != "auto":
        return text
    return (
        f"{text} (the rule: all of up to {ENOUGH:,}, of more {ENOUGH:,}, of texts as many as hold {PREDICTIONS:,} "
        f"tokens and at least {FEWEST}; --solve examples=all, or examples=None, takes all)"
    )


def check_subset(what: str, examples: Count, seed: int, memory: int | None) -> None:
    """Refuse settings out of range.

    Raises:
        DescriptionError: the number, the seed or the bytes are none.
    """
    if isinstance(examples, str) and examples != "auto":
        refuse(f"{what}(examples=...) must be a number, 'auto' (the rule's) or None (all), got {examples!r}")
    if examples is not None and examples != "auto":
        check_count(examples, f"{what}(examples=...)")
    if memory is not None:
        check_count(memory, f"{what}(memory=...), in bytes,")
    if not isinstance(seed, int):
        refuse(f"{what}(seed=...) must be a whole number, got {seed!r}")
