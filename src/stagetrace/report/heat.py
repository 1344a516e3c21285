"""The scores of the tokens of the examples that a report shows, as its page takes them."""

from collections.abc import Sequence
from typing import Any

from stagetrace.report.model import Report
from stagetrace.report.numbers import signed
from stagetrace.results import ExampleTokens

__all__ = ["heat_of"]


def heat_of(report: Report, names: Sequence[str]) -> dict[str, Any]:
    """By "stage:index:query" (nothing for the whole query) the scores by position, in words, and the rest's.

    Of examples whose tokens are kept in words alone.
    """
    found = dict[str, Any]()
    for row in report.rows:
        tokens, item = report.tokens.get(row.stage), report.previews.get((row.stage, row.index))
        if tokens is None or item is None or not item.pieces:
            continue
        query = "" if row.query is None else row.query
        found[f"{names.index(row.stage)}:{row.index}:{query}"] = _of_example(tokens[row.index], row.query)
    return found


def _of_example(example: ExampleTokens, query: int | None) -> dict[str, Any]:
    values, rest = example.values, example.left_out
    if values.ndim == 2:  # a row for each query
        values, rest = (each.mean(dim=0) if query is None else each[query] for each in (values, rest))
    told = {"at": example.positions.tolist(), "said": [signed(value) for value in values.tolist()]}
    return told | ({"rest": signed(float(rest))} if float(rest) else {})
