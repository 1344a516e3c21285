"""The same tables for the terminal and the note."""

from collections.abc import Mapping

from stagetrace.curate.curation import Curation
from stagetrace.curate.verify import Verified
from stagetrace.results.sign import UNIT
from stagetrace.results.table import Sheet
from stagetrace.validation.agreement import Interval

GROUPS_NOTE = (
    "Interval: 2.5 % to 97.5 % of bootstrap samples of the source's examples, what as many others of the same source "
    "could give. It does not say how far the scores can be trusted."
)

CHANGE_HEADING = f"true change ({UNIT}; - helps)"
PREDICTED_HEADING = f"predicted change ({UNIT}; - helps)"


def headline(curation: Curation) -> list[str]:
    """What was dropped, and what that is predicted to change, in sentences."""
    scores, dropped = curation.scores, len(curation.drop)
    balance = f", the same share of each of {len(curation.classes)} classes" if curation.classes else ""
    lines = [
        f"`{curation.rule.words}` drops {dropped:,} of {scores.n_examples:,} examples "
        f"({100 * dropped / scores.n_examples:.3g} %) and keeps {len(curation.keep):,}{balance}.",
        f"Predicted change of the query loss without them: {curation.predicted:+.3e} (unit: {UNIT}; negative = "
        "leaving them out helps).",
    ]
    if curation.helpful_dropped:
        lines.append(
            f"{curation.helpful_dropped:,} of the dropped examples have a negative score: they are predicted to help, "
            "and the rule asked for more than are harmful."
        )
    if scores.n_queries:
        lines.append(f"Each example counts by the mean of its scores over {scores.n_queries:,} queries.")
    return lines


def classes(curation: Curation) -> Sheet:
    """A line a class that was balanced."""
    rows = tuple(
        (each.name, f"{each.examples:,}", f"{each.dropped:,}", f"{100 * each.dropped / each.examples:.3g} %")
        for each in curation.classes
    )
    headings = ("class", "examples", "dropped", "share dropped")
    return Sheet("classes (the same share of each is dropped)", headings, rows, words=frozenset({"class"}))


def groups(curation: Curation) -> Sheet:
    """A line a source, the most harmful first."""
    rows = tuple(
        (
            *(each.name, f"{each.examples:,}", f"{each.dropped:,}", f"{each.mean:+.3e}"),
            f"{each.total:+.3e} ({_between(each.total_interval)})",
            f"{each.removal_effect:+.3e}",
        )
        for each in curation.groups
    )
    return Sheet(
        f"sources, the most harmful first (scores: + harmful; effect of removal: - helps; unit: {UNIT})",
        ("source", "examples", "dropped", "mean score", "total score (95 %)", "effect of removal"),
        rows,
        GROUPS_NOTE,
        words=frozenset({"source"}),
    )


def verified(curation: Curation, found: Verified, fits: Mapping[str, str]) -> Sheet:
    """What was dropped beside each random set of as many examples.

    fits: how each stage was trained again, in words.
    """
    runs, sets = len(found.effects), found.random_effects.shape[1]
    rows = [("dropped by the rule", f"{found.predicted:+.3e}", _runs(found.effects.tolist()))]
    random = zip(found.random_predicted.tolist(), found.random_effects.mT.tolist(), strict=True)
    rows += [
        (f"random set {number}", f"{predicted:+.3e}", _runs(effects))
        for number, (predicted, effects) in enumerate(random, start=1)
    ]
    averaged = f", mean of {runs} runs (lowest to highest)" if runs > 1 else ""
    trained = "; ".join(f"stage '{name}' was trained again by {how}" for name, how in fits.items())
    caption = (
        f"The rule: {found.true:+.3e} true, {found.predicted:+.3e} predicted; random sets of as many examples: "
        f"{found.random_true.mean().item():+.3e} true on average; {found.random_better} of {sets} random sets did as "
        f"well or better. Negative = leaving them out helps; unit: {UNIT}. "
        f"{found.retrainings} retrainings{f'; {trained}' if trained else ''}."
    )
    return Sheet(
        f"trained again without {len(curation.drop):,} examples{averaged}",
        ("left out", PREDICTED_HEADING, CHANGE_HEADING),
        tuple(rows),
        caption,
        words=frozenset({"left out"}),
    )


def _runs(changes: list[float]) -> str:
    mean = f"{sum(changes) / len(changes):+.3e}"
    return mean if len(changes) == 1 else f"{mean} ({min(changes):+.2e} to {max(changes):+.2e})"


def _between(interval: Interval) -> str:
    low, high = interval
    return "interval unknown" if low != low or high != high else f"{low:+.2e} to {high:+.2e}"
