"""The page about models: every row is a case that is measured or refused here, and every case has its row."""

import re

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


def named(kind: type) -> pytest.MarkDecorator:
    rows = [row for row in ROWS if isinstance(row, kind)]
    marks = [[pytest.mark.slow] if row.what.endswith(", eager") else [] for row in rows]  # as by the other kernel
    return pytest.mark.parametrize(
        "row", [pytest.param(row, id=row.what, marks=slow) for row, slow in zip(rows, marks, strict=True)]
    )


def test_the_tables_are_those_of_the_cases():
    assert models.filled(PAGE, SAID, ROWS) == PAGE, "type: python -m docs.tools.models"
    assert set(SAID) == {row.what for row in ROWS if isinstance(row, Right)}


@named(Right)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft on transformers 5
@pytest.mark.filterwarnings("ignore::stagetrace.errors.CurvatureWarning")  # nothing here was trained
def test_scores_are_those_of_dense_matrices(row: Right):
    """What the page says was measured on another machine: both lie below the same bound."""
    assert SAID[row.what] <= row.at_most
    if row.table not in MEASURED_WITH_THEIR_CASES:
        assert row.error() <= row.at_most


@named(Refused)
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
