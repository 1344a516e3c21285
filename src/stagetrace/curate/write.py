"""A curation as files: index lists, a filtered copy of the data, and a note that says what was done and how to check.

OUT/keep.txt, OUT/drop.txt            indices, one a line
OUT/keep.parquet, OUT/drop.parquet    index int64, score and removal_effect float64
OUT/data.parquet or OUT/data/         the rows that are kept, with their original index
OUT/curation.json, OUT/curation.md    the record and the note
"""

# pyarrow leaves out its types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from stagetrace.curate.curation import Curation
from stagetrace.curate.note import Note
from stagetrace.errors import ResultsError, refuse
from stagetrace.results import JSON, SIGN, UNIT
from stagetrace.results.files import atomic, cannot_write, move
from stagetrace.results.jsonable import differences, format_differences, json_text, read_json

RECORD = "curation.json"
NOTE = "curation.md"


def write(note: Note, out: Path) -> list[Path]:
    """Write everything to a folder beside `out` first, then move it into place: nothing is ever half there.

    A folder that holds this same curation is written anew, and what else lies in it (retrainings) stays.

    Returns:
        What was written, the note first.

    Raises:
        ResultsError: `out` holds something else, or the file system refused. Nothing has been written then.
        DescriptionError: the data have another number of rows than the stage has examples, or are missing.
    """
    check_rows(note)
    check_out(note, out)
    staging = out.resolve().with_name(f".{out.resolve().name}.saving")
    try:
        shutil.rmtree(staging, ignore_errors=True)  # what a killed write left
        _fill(staging, note)
        names = sorted(path.name for path in staging.iterdir())
        if out.exists() and any(out.iterdir()):
            _replace(staging, out)
        else:
            if out.exists():
                out.rmdir()
            move(staging, out)
    except OSError as cause:
        raise cannot_write(out, cause) from cause
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [out / NOTE, *(out / name for name in names if name != NOTE)]


def write_note(note: Note, out: Path) -> None:
    """Write the record and the note alone, each whole, over those that are there.

    Raises:
        ResultsError: the file system refused.
    """
    for name, text in ((NOTE, note.markdown()), (RECORD, json_text(note.record()))):
        with atomic(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")


def check_rows(note: Note) -> None:
    """Refuse data that cannot be those of the stage; their number of rows is all that can be compared.

    Raises:
        DescriptionError: another number of rows than the stage has examples, or no data for a filtered copy.
    """
    data, curation = note.data, note.curation
    if data is None:
        if note.as_ != "indices":
            said = "needs the data; type --data FOLDER_OR_PARQUET, or read_rows(...) in Python"
            refuse(f"a filtered copy ({note.as_}) {said}")
        return
    if len(data) != curation.scores.n_examples:
        refuse(
            f"{data.place} has {len(data):,} rows, but stage '{curation.stage}' has {curation.scores.n_examples:,} "
            "examples; give the data that the stage was trained on, in the same order"
        )


def check_out(note: Note, out: Path) -> None:
    """Refuse a place that holds something else; nothing is written.

    Raises:
        ResultsError: a file, a folder of something else, or another curation: the message lists what differs.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ResultsError(f"{out} is a file, not a folder; choose an empty or new folder")
    if not any(out.iterdir()):
        return
    if not (out / RECORD).exists():
        raise ResultsError(f"{out} holds something else (no {RECORD} in it); choose an empty or new folder")
    changed = differences(read_record(out).get("of"), note.identity)
    if changed:
        raise ResultsError(
            f"{out} holds another curation; it differs from this one in (there -> here):\n"
            f"{format_differences(changed)}\n"
            "choose another folder (--out), or delete this one"
        )


def read_record(out: Path) -> Mapping[str, JSON]:
    """What curation.json of a folder says.

    Raises:
        ResultsError: it cannot be read.
    """
    path = out / RECORD
    try:
        return dict(read_json(path))
    except (OSError, TypeError, ValueError) as cause:
        raise ResultsError(f"{path} cannot be read ({cause}); choose another folder, or delete this one") from cause


def _fill(staging: Path, note: Note) -> None:
    curation, data = note.curation, note.data
    staging.mkdir(parents=True)
    for name, indices in (("keep", curation.keep), ("drop", curation.drop)):
        with atomic(staging / f"{name}.txt") as temporary:
            temporary.write_text("".join(f"{index}\n" for index in indices), encoding="utf-8", newline="\n")
        with atomic(staging / f"{name}.parquet") as temporary:
            pq.write_table(_table(curation, indices), temporary, compression="zstd")
    if data is not None and note.as_ == "parquet":
        with atomic(staging / "data.parquet") as temporary:
            data.write_parquet(curation.keep, temporary)
    if data is not None and note.as_ == "hf":
        data.write_hf(curation.keep, staging / "data")
    write_note(note, staging)


def _table(curation: Curation, indices: Sequence[int]) -> Any:
    """The indices with both numbers; the file's own metadata say the sign, so that it cannot be misread on its own."""
    values = curation.scores.per_example[torch.tensor(indices)]
    arrays = {
        "index": pa.array(np.array(indices, dtype=np.int64)),
        "score": pa.array(values.numpy()),
        "removal_effect": pa.array((-values / curation.scores.n_examples).numpy()),
    }
    return pa.table(arrays).replace_schema_metadata({"stage": curation.stage, "sign": SIGN, "units": UNIT})


def _replace(staging: Path, out: Path) -> None:
    """Move what was staged over the same curation, entry by entry, the record last."""
    for path in sorted(staging.iterdir(), key=lambda path: path.name == RECORD):
        target = out / path.name
        if target.is_dir():
            shutil.rmtree(target)
        move(path, target)
