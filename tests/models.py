"""Rows of `docs/models.md`: each is a case that a test measures, or sees refused.

A module of `SOURCES` has a list `ROWS`. `python -m docs.tools.models` makes the page's tables of them, and
`tests/docs/test_models.py` tries every row. To add one, add to a module's list, or a module to `SOURCES`.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stagetrace.errors import StagetraceError

SOURCES = ("tests.architectures.rows", "tests.hf.rows")


@dataclass(frozen=True, eq=False)
class Right:
    """Traced, and compared with dense float64 matrices.

    table: where on the page. what: in the page's words. error: measures the largest error of a score, over the
    largest score of its stage. at_most: what the test allows. how: how the scores are computed, or another remark.
    """

    table: str
    what: str
    error: Callable[[], float]
    at_most: float
    how: str = ""


@dataclass(frozen=True, eq=False)
class Refused:
    """Refused before anything is solved, with words that match; instead: what to type, in the page's words."""

    table: str
    what: str
    attempt: Callable[[], Any]
    kind: type[StagetraceError]
    words: str
    instead: str


Row = Right | Refused


def rows() -> list[Row]:
    """Of every source, in the order of the page."""
    return [row for source in SOURCES for row in importlib.import_module(source).ROWS]
