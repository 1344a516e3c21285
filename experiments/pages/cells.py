"""What stands in a table: figures with their intervals, and entries of a result by their path."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.records import over_seeds

Found = Mapping[str, Any]
NOT_RUN = "Not run yet.\n"
BOOTSTRAP = {
    "pearson_r": "pearson_interval",
    "spearman_r": "spearman_interval",
    "slope": "slope_interval",
    "lds": "interval",
}
"""Of each figure, the name of its interval over bootstrap samples."""


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; what is None becomes '-'."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join("-" if cell is None else str(cell) for cell in line) + " |\n" for line in lines)


def cells(found: Found, columns: Mapping[str, str]) -> list[str | None]:
    """For each path into `found` (`train/loss`) its entry in the format beside it; None where there is none."""
    row = list[str | None]()
    for path, form in columns.items():
        entry: Any = found
        for key in path.split("/"):
            entry = entry.get(key) if entry else None
        row.append(None if entry is None else form.format(entry))
    return row


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


def seeds_of(found: Sequence[object]) -> str:
    return f"{len(found)} seed{'s' if len(found) != 1 else ''}"
