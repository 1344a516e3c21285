"""CSV and NumPy, in our own sign: for spreadsheets and for programs that know nothing of stagetrace."""

# pyarrow leaves out its types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc

from stagetrace.results import SIGN, UNIT, Scores
from stagetrace.results.files import atomic
from stagetrace.results.sign import REMOVAL_HEADING, SCORE_HEADING


def write_csv(scores: Scores, out: Path) -> list[Path]:
    """Write a row an example: its index, score and removal effect; of a matrix a column of each for every query.

    A last column, id, where the examples have ids.

    The headings say sign and unit.

    Raises:
        ResultsError: the file system refused.
    """
    columns = {"index": pa.array(np.arange(scores.n_examples))}
    for heading, values in ((SCORE_HEADING, scores.values), (REMOVAL_HEADING, scores.removal_effect)):
        if values.ndim == 1:
            columns[heading] = pa.array(values.numpy())
        else:
            columns |= {f"{heading}, query {query}": pa.array(row.numpy()) for query, row in enumerate(values)}
    if scores.ids is not None:
        columns["id"] = scores.ids.array
    with atomic(out) as temporary:
        pc.write_csv(pa.table(columns), temporary)
    return [out]


def write_numpy(scores: Scores, out: Path) -> list[Path]:
    """Write an `.npz`: `score` and `removal_effect`, float64 as in `Scores`, and the texts `stage`, `sign`, `unit`.

    Also `id`, a text an example, where the examples have ids.

    Raises:
        ResultsError: the file system refused.
    """
    ids: dict[str, Any] = {} if scores.ids is None else {"id": np.array(list(scores.ids), dtype=np.str_)}
    with atomic(out) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            score=scores.values.numpy(),
            removal_effect=scores.removal_effect.numpy(),
            stage=np.array(scores.stage),
            sign=np.array(SIGN),
            unit=np.array(UNIT),
            **ids,
        )
    return [out]
