"""Rows of a corpus and examples of a stage, brought together by their ids: the stage may have seen a part of them."""

import numpy as np

from stagetrace.curate.rows import Rows
from stagetrace.errors import DataError, refuse
from stagetrace.results import Scores
from stagetrace.stages.ids import Ids
from stagetrace.stages.own_ids import COLUMN

__all__ = ["matched"]

_SOME = 3


def matched(rows: Rows, scores: Scores, column: str | None = None) -> Rows:
    """The rows that the stage's examples were made of, in the examples' order.

    Where the scores have ids and the rows a column of them, each example takes the row of its id: the corpus may have
    more rows than the stage has examples, and another order. Else row i is taken for example i.

    Args:
        rows: a whole corpus, or the stage's own rows.
        column: which one holds the ids; None takes 'id' where the rows have it.

    Raises:
        DescriptionError: a column of ids was named, and the scores have none; or there is no such column.
        DataError: two rows have the same id, or an example's id is that of no row.

    Example:
        >>> import pyarrow as pa, torch
        >>> corpus = Rows("corpus.parquet", pa.table({"id": ["a", "b", "c", "d"], "n": [1, 2, 3, 4]}))
        >>> found = matched(corpus, Scores("fit", torch.zeros(2).double(), ids=Ids(["d", "b"])))
        >>> found.column("n"), found.others
        ([4, 2], 2)
    """
    if scores.ids is None:
        if column is not None:
            refuse(
                f"the scores of stage '{scores.stage}' have no ids to look up in column '{column}'; score again with "
                f"Stage(..., ids='{column}'), or leave the column out and give the stage's own rows in their order"
            )
        return rows
    named = column or (COLUMN if COLUMN in rows.columns else None)
    if named is None:
        return rows
    theirs = Ids(rows.column(named), f"{rows.place}, column '{named}'")
    places = scores.ids.positions_in(theirs)
    missing = np.flatnonzero(places < 0)
    if len(missing):
        some = ", ".join(repr(scores.ids[int(index)]) for index in missing[:_SOME])
        raise DataError(
            f"{len(missing):,} of the {scores.n_examples:,} examples of stage '{scores.stage}' are not in "
            f"{rows.place}: their ids ({some}{', ...' if len(missing) > _SOME else ''}) are not in its column "
            f"'{named}'; give the corpus that the stage's data came from, or the column of its ids (--ids COLUMN)"
        )
    return rows.at(places, named)
