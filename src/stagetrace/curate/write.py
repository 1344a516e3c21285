"""A curation as files: index lists, a filtered copy of the data, and a note that says what was done and how to check.

OUT/keep.txt, OUT/drop.txt            indices, one a line
OUT/keep.parquet, OUT/drop.parquet    index int64, score and removal_effect float64, and id where examples have ids
OUT/keep-ids.txt, OUT/drop-ids.txt    these ids, one a line
OUT/data.parquet or OUT/data/         the rows that are kept, with their original index
OUT/curation.json, OUT/curation.md    the record and the note
"""

# pyarrow leaves out its types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from stagetrace.curate.curation import Curation
from stagetrace.curate.record import Record
from stagetrace.errors import refuse
from stagetrace.results import SIGN, UNIT
from stagetrace.results.files import atomic, filled, holds, read_as, write_text
from stagetrace.results.jsonable import json_text, read_json
from stagetrace.results.manifest import refuse_different

RECORD = "curation.json"
NOTE = "curation.md"


def write(record: Record, out: Path) -> list[Path]:
    """Write everything to a folder beside `out` first, then move it into place: nothing is ever half there.

    A folder that holds this same curation is written again, and what else lies in it (retrainings) stays.

    Returns:
        What was written, the note first.

    Raises:
        ResultsError: `out` holds something else, or the file system refused. Nothing has been written then.
        DescriptionError: the data have another number of rows than the stage has examples, or are missing.
    """
    check_rows(record)
    check_out(record, out)
    with filled(out, first=RECORD) as staging:
        _fill(staging, record)
        names = sorted(path.name for path in staging.iterdir())
    return [out / NOTE, *(out / name for name in names if name != NOTE)]


def write_note(record: Record, out: Path) -> None:
    """Write the record and the note alone, each whole, over those that are there.

    Raises:
        ResultsError: the file system refused.
    """
    for name, text in ((NOTE, record.markdown()), (RECORD, json_text(record.json()))):
        write_text(out / name, text)


def check_rows(record: Record) -> None:
    """Refuse data that cannot be those of the stage; their number of rows is all that can be compared.

    Raises:
        DescriptionError: another number of rows than the stage has examples, or no data for a filtered copy.
    """
    data, curation = record.data, record.curation
    if data is None:
        if record.as_ != "indices":
            refuse(
                f"a filtered copy ({record.as_}) needs the data; type --data FOLDER_OR_PARQUET, or pass "
                "data=read_rows(...) in Python"
            )
        return
    if len(data) != curation.scores.n_examples:
        refuse(
            f"{data.place} has {len(data):,} rows, but stage '{curation.stage}' has {curation.scores.n_examples:,} "
            f"examples; give the data that the stage was trained on, in the same order{_or_by_ids(curation)}"
        )


def _or_by_ids(curation: Curation) -> str:
    """How rows of a larger corpus are found."""
    if curation.scores.ids is None:
        return "; or score again with ids (Stage(..., ids=COLUMN)), by which rows of a larger corpus are found"
    return ", or name the column of its ids: --ids COLUMN (matched(rows, scores, COLUMN) in Python)"


def check_out(record: Record, out: Path) -> None:
    """Refuse a place that holds something else; nothing is written.

    Raises:
        ResultsError: a file, a folder of something else, or another curation: the message lists what differs.
    """
    if not holds(out, RECORD):
        return
    with read_as(out / RECORD, "the record of a curation", "choose another folder, or delete this one"):
        before = dict(read_json(out / RECORD))
    refuse_different(out, "curation", before.get("of"), record.identity)


def _fill(staging: Path, record: Record) -> None:
    curation, data = record.curation, record.data
    for name, indices in (("keep", curation.keep), ("drop", curation.drop)):
        write_text(staging / f"{name}.txt", "".join(f"{index}\n" for index in indices))
        if curation.scores.ids is not None:
            ids = curation.scores.ids.take(indices)
            write_text(staging / f"{name}-ids.txt", "".join(f"{each}\n" for each in ids))
        with atomic(staging / f"{name}.parquet") as temporary:
            pq.write_table(_table(curation, indices), temporary, compression="zstd")
    if data is not None and record.as_ == "parquet":
        with atomic(staging / "data.parquet") as temporary:
            data.write_parquet(curation.keep, temporary)
    if data is not None and record.as_ == "hf":
        data.write_hf(curation.keep, staging / "data")
    write_note(record, staging)


def _table(curation: Curation, indices: Sequence[int]) -> Any:
    """The indices with both numbers; the file's own metadata say the sign, so that it cannot be misread on its own."""
    values = curation.scores.per_example[torch.tensor(indices)]
    arrays = {
        "index": pa.array(np.array(indices, dtype=np.int64)),
        "score": pa.array(values.numpy()),
        "removal_effect": pa.array((-values / curation.scores.n_examples).numpy()),
    }
    if curation.scores.ids is not None:
        arrays["id"] = curation.scores.ids.take(indices).array
    return pa.table(arrays).replace_schema_metadata({"stage": curation.stage, "sign": SIGN, "units": UNIT})
