"""The page about models: every row is a case that is measured or refused here, and every case has its row."""

import re
from typing import Any

import pytest

pytest.importorskip("peft")
pytest.importorskip("scipy")
from docs.tools import models
from tests.models import Refused, Right, Row, rows

ROWS = rows()
PAGE = models.PAGE.read_text()
SAID = models.errors_of(PAGE)


MEASURED_WITH_THEIR_CASES = ("chains", "adapters", "rows")
"""Tables whose rows are measured, by the same functions and to the same bounds, where their cases are tested."""


MEASURED_HERE = [row for row in ROWS if isinstance(row, Right) and row.table not in MEASURED_WITH_THEIR_CASES]
QUICK = {"lstm", "encoder", "embedding bag, max", "function, once"}
"""One of each kind. The derivatives of all of them stand against plain autograd in `tests/architectures`."""


def named(rows: list[Any], quick: set[str] | None = None) -> pytest.MarkDecorator:
    slow = [quick is not None and row.what not in quick for row in rows]
    params = [
        pytest.param(row, id=row.what, marks=pytest.mark.slow if s else ()) for row, s in zip(rows, slow, strict=True)
    ]
    return pytest.mark.parametrize("row", params)


def test_the_tables_are_those_of_the_cases():
    assert models.filled(PAGE, SAID, ROWS) == PAGE, "type: python -m docs.tools.models"
    assert set(SAID) == {row.what for row in ROWS if isinstance(row, Right)}


@named([row for row in ROWS if isinstance(row, Right)])
def test_what_the_page_says_lies_below_the_bound(row: Right):
    """It was measured on another machine; the next test measures on this one."""
    assert SAID[row.what] <= row.at_most


def test_each_that_is_quick_is_a_case():
    assert {row.what for row in MEASURED_HERE} >= QUICK


@named(MEASURED_HERE, QUICK)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft on transformers 5
@pytest.mark.filterwarnings("ignore::stagetrace.errors.CurvatureWarning")  # nothing here was trained
def test_scores_are_those_of_dense_matrices(row: Right):
    assert row.error() <= row.at_most


@named([row for row in ROWS if isinstance(row, Refused)])
@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning",
    "ignore:.*torch.jit.*:DeprecationWarning",
    "ignore:.*None of the inputs.*:UserWarning",
    "ignore:Complex modules:UserWarning",
)
def test_what_is_refused_says_what_to_type(row: Refused):
    with pytest.raises(row.kind) as caught:
        row.attempt()
    assert re.search(row.words, str(caught.value)), str(caught.value)


def test_a_row_needs_its_table_and_a_name_of_its_own():
    page = "<!-- table: a -->\nold\n<!-- end -->"
    row: Row = Right("a", "x", lambda: 0.0, 1e-8, "forward mode")
    made = models.filled(page, {"x": 1.26e-10}, [row])
    assert "| x | 1e-10 | 1e-08 | forward mode |" in made
    assert models.errors_of(made) == {"x": 1e-10}
    wrongs: list[list[Row]] = [[], [row, row], [row, Right("b", "y", lambda: 0.0, 1.0)]]
    for wrong in wrongs:
        with pytest.raises(ValueError, match="the page has the tables"):
            models.filled(page, {"x": 0.0, "y": 0.0}, wrong)
