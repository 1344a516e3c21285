"""Weights as files: a table for each stage, and how they came about.

DIR/weights/<stage>.parquet   index int64, weight float64
DIR/reweighting.json          every try, and the losses with and without the weights
"""

# pyarrow leaves out its types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stagetrace.errors import ResultsError
from stagetrace.results import UNIT
from stagetrace.results.files import filled, stage_name, write_text
from stagetrace.results.jsonable import json_text, to_json
from stagetrace.reweighting.result import Reweighting

RECORD = "reweighting.json"
SIGN = "changes of the query loss: negative = the weights help; weights have the mean 1 in each stage"


def write(result: Reweighting, out: Path) -> None:
    """Write everything to a folder beside `out` first, then move it into place.

    Raises:
        ResultsError: the folder is there already and holds something, or the file system refused.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ResultsError(f"{out} holds something already; give another folder, or delete it first")
    with filled(out, first=RECORD) as staging:
        (staging / "weights").mkdir()
        for stage, weights in result.weights.items():
            table = pa.table({"index": pa.array(range(len(weights)), pa.int64()), "weight": weights.numpy()})
            pq.write_table(table, staging / "weights" / f"{stage_name(stage)}.parquet")
        write_text(staging / RECORD, json_text(record(result)))


def record(result: Reweighting) -> dict[str, object]:
    """The figures by name, as JSON holds them."""
    return {
        "sign": SIGN,
        "unit": UNIT,
        "stages": list(result.weights),
        "history": [{**asdict(each), "true": to_json(each.true)} for each in result.history],
        "target": [{**asdict(each), "change": each.change} for each in result.target],
        "held_out": [{**asdict(each), "change": each.change} for each in result.held_out],
        "stopped": result.stopped,
    }
