"""The same tables for the terminal and the note, made from the record alone."""

from collections.abc import Mapping
from typing import Any

from stagetrace.results.sheet import Sheet
from stagetrace.results.sign import UNIT

GROUPS_NOTE = (
    "Interval: 2.5 % to 97.5 % of bootstrap samples of the source's examples, what as many others of the same source "
    "could give. It does not say how far the scores can be trusted."
)

CHANGE_HEADING = f"true change ({UNIT}; - helps)"
PREDICTED_HEADING = f"predicted change ({UNIT}; - helps)"


def headline(record: Mapping[str, Any]) -> list[str]:
    """What was dropped, and what that is predicted to change, in sentences."""
    of = record["of"]
    share = record["dropped"] / of["examples"]
    lines = [
        f"`{of['rule']}` drops {record['dropped']:,} of {of['examples']:,} examples ({100 * share:.3g} %) and keeps "
        f"{record['kept']:,}{_balance(record)}.",
        f"Predicted change of the query loss without them: {record['predicted_change']:+.3e} (unit: {UNIT}; negative = "
        "leaving them out helps).",
    ]
    if record["helpful_dropped"]:
        lines.append(
            f"{record['helpful_dropped']:,} of the dropped examples have a negative score: they are predicted to help, "
            "and the rule asked for more than are harmful."
        )
    if of["queries"]:
        lines.append(f"Each example counts by the mean of its scores over {of['queries']:,} queries.")
    return lines


def classes(record: Mapping[str, Any]) -> Sheet:
    """A line a class that was balanced."""
    rows = tuple(
        (
            each["name"],
            f"{each['examples']:,}",
            f"{each['dropped']:,}",
            f"{100 * each['dropped'] / each['examples']:.3g} %",
        )
        for each in record["classes"]
    )
    return Sheet(
        "classes (the same share of each is dropped)",
        ("class", "examples", "dropped", "share dropped"),
        rows,
        words=frozenset({"class"}),
    )


def groups(record: Mapping[str, Any]) -> Sheet:
    """A line a source, the most harmful first."""
    rows = tuple(
        (
            each["name"],
            f"{each['examples']:,}",
            f"{each['dropped']:,}",
            f"{each['mean']:+.3e}",
            f"{each['total']:+.3e} ({_between(each['total_interval'])})",
            f"{each['removal_effect']:+.3e}",
        )
        for each in record["groups"]
    )
    return Sheet(
        f"sources, the most harmful first (scores: + harmful; effect of removal: - helps; unit: {UNIT})",
        ("source", "examples", "dropped", "mean score", "total score (95 %)", "effect of removal"),
        rows,
        GROUPS_NOTE,
        words=frozenset({"source"}),
    )


def verified(record: Mapping[str, Any]) -> Sheet:
    """What was dropped beside each random set of as many examples."""
    found = record["verified"]
    runs = len(found["true_change_of_each_run"])
    sets = found["random_sets"]
    rows = [("dropped by the rule", f"{found['predicted_change']:+.3e}", _runs(found["true_change_of_each_run"]))]
    rows += [
        (f"random set {number}", f"{each['predicted_change']:+.3e}", _runs(each["true_change_of_each_run"]))
        for number, each in enumerate(sets, start=1)
    ]
    averaged = f", mean of {runs} runs (lowest to highest)" if runs > 1 else ""
    trained = "; ".join(f"stage '{name}' was trained again by {how}" for name, how in found["fits"].items())
    caption = (
        f"The rule: {found['true_change']:+.3e} true, {found['predicted_change']:+.3e} predicted; random sets of as "
        f"many examples: {found['random_mean_change']:+.3e} true on average; {found['random_sets_as_good']} of "
        f"{len(sets)} random sets did as well or better. Negative = leaving them out helps; unit: {UNIT}. "
        f"{found['retrainings']} retrainings{f'; {trained}' if trained else ''}."
    )
    return Sheet(
        f"trained again without {record['dropped']:,} examples{averaged}",
        ("left out", PREDICTED_HEADING, CHANGE_HEADING),
        tuple(rows),
        caption,
        words=frozenset({"left out"}),
    )


def _balance(record: Mapping[str, Any]) -> str:
    return f", the same share of each of {len(record['classes'])} classes" if record["classes"] else ""


def _runs(changes: list[float]) -> str:
    mean = f"{sum(changes) / len(changes):+.3e}"
    return mean if len(changes) == 1 else f"{mean} ({min(changes):+.2e} to {max(changes):+.2e})"


def _between(interval: list[float | None]) -> str:
    low, high = interval
    return "interval unknown" if low is None or high is None else f"{low:+.2e} to {high:+.2e}"
