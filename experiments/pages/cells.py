"""What stands in a table: figures with their intervals, what they are of, and what they cost."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.intervals import over_seeds
from experiments.paper import IDENTITY
from stagetrace import Identity
from stagetrace.validation import EmbeddingSimilarity, GradientDot, Influence, Random

Found = Mapping[str, Any]
NOT_RUN = "Not run yet.\n"
BOOTSTRAP = {
    "pearson_r": "pearson_interval",
    "spearman_r": "spearman_interval",
    "slope": "slope_interval",
    "lds": "interval",
}
"""Of each figure, the name of its interval over bootstrap samples."""
FIGURES = {
    "pearson_r": "Pearson r (95 %)",
    "spearman_r": "Spearman (95 %)",
    "slope": "slope, true over predicted (95 %)",
    "without_largest": "r without the largest prediction (95 %)",
}
CONTROLS = Influence(Identity(), name=IDENTITY), GradientDot(), EmbeddingSimilarity("embedding"), Random()
RANKS_ONLY = {each.name for each in CONTROLS if each.unit is None}
"""Estimators without a unit: their slope means nothing."""


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; what is None becomes '-'."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join("-" if cell is None else str(cell) for cell in line) + " |\n" for line in lines)


def spread(found: Found, form: str = ".2f") -> str:
    """Of `over_seeds`: the mean and its interval."""
    mean, low, high = found["mean"], found["low"], found["high"]
    if mean is None:
        return "-"
    return f"{mean:{form}}" if low is None else f"{mean:{form}} ({low:{form}} to {high:{form}})"


def mean(values: Iterable[float | None], form: str = ".2f") -> str:
    """Over seeds, with its interval; '-' where no value is known, and how many are where not all."""
    found = list(values)
    known = [value for value in found if value is not None]
    some = "" if len(known) == len(found) else f", {len(known)} of {len(found)} known"
    return spread(over_seeds(known), form) + some if known else "-"


def agreed(records: Sequence[Found], figure: str, form: str = ".3f") -> str:
    """A figure of one estimator over seeds; of one seed with its bootstrap interval."""
    interval = records[0].get(BOOTSTRAP.get(figure, ""))
    if len(records) > 1 or interval is None or None in interval:
        return mean((record[figure] for record in records), form)
    low, high = interval
    return spread({"mean": records[0][figure], "low": low, "high": high}, form)


def figures(name: str, records: Sequence[Found]) -> list[str]:
    """The agreement of one estimator; its records over seeds."""
    return ["-" if figure == "slope" and name in RANKS_ONLY else agreed(records, figure) for figure in FIGURES]


def seeds_of(found: Sequence[object]) -> str:
    return f"{len(found)} seed{'s' if len(found) != 1 else ''}"


def truth(choices: Sequence[Found]) -> str:
    """How far the truth of a choice of removals can be trusted."""
    rows = [("mean absolute effect (query loss)", mean((each["mean_absolute_effect"] for each in choices), ".1e"))]
    known = [each["reliability"] for each in choices if each["reliability"]]
    if known:
        of = {
            f"reliability of the mean of {known[0]['runs']} runs": ("reliability", ".2f"),
            "the same by ranks": ("rank_reliability", ".2f"),
            "reliability of one run": ("single", ".2f"),
            "ceiling of r": ("ceiling", ".2f"),
            "noise floor (query loss)": ("noise_floor", ".1e"),
        }
        rows += [(words, mean((each[what] for each in known), form)) for words, (what, form) in of.items()]
    return markdown(("measured truth", f"mean (95 %), {seeds_of(choices)}"), rows)


def cost(result: Found, spent: Mapping[str, object]) -> str:
    """What it ran on, and what it took."""
    on, torch = result["hardware"], result["versions"]["torch"]
    facts = {
        "hardware": f"{on['device']}, {on['kind']}",
        "cores": on["cores"],
        "threads": on["threads"],
        "torch": torch,
    }
    return markdown([*facts, *spent], [[*facts.values(), *spent.values()]])


def retrainings(runs: Sequence[Found]) -> dict[str, object]:
    """How many, and how many a process makes a minute, over all runs."""
    counts = [run["retrainings"] for run in runs]
    rates = [run["retrainings_per_minute_and_process"] for run in runs]
    minutes = sum(count / rate for count, rate in zip(counts, rates, strict=True) if rate)
    a_minute = f"{sum(counts) / minutes:.0f}" if minutes else None
    return {"retrainings": f"{sum(counts):,}", "retrainings per minute and process": a_minute}
