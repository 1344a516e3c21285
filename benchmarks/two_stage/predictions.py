"""The file of a method's predictions, the same for every method: one row for each question.

Columns, of a Parquet file:

    chain, seed   which chain, as in `truths/`
    query         "mean" (the mean test loss) or "test N" (one test example)
    subset        the subset that is left out, such as "10%-03"
    change        the predicted change of that query's loss when the subset is left out of pretraining and both stages
                  are trained again; negative = leaving it out lowers the loss, so it helps

Metadata of its schema, under `stagetrace.two-stage predictions`, as JSON:

    method        its name, for tables
    sign          "negative = leaving it out helps"
    unit          "nats" where sizes mean something, "none" where only the order does
    seconds       {"cifar": processor seconds for each seed's chain, all queries, ...}, or {}
    notes         what should be known of it, in a sentence

A method may leave out whole chains, and all queries but "mean"; what it answers it must answer for every seed and
subset.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks.two_stage.protocol import MEAN
from benchmarks.two_stage.truths import Truth
from stagetrace.errors import refuse
from stagetrace.results.files import atomic

KEY = b"stagetrace.two-stage predictions"
SIGN = "negative = leaving it out helps"
UNITS = ("nats", "none")
COLUMNS = {"chain": str, "seed": int, "query": str, "subset": str, "change": float}
FOLDER = Path(__file__).parent / "predictions"

Truths = Mapping[tuple[str, int], Truth]


@final
@dataclass(frozen=True, eq=False)
class Predictions:
    """What a method predicts.

    changes: by chain, seed and query, `[subsets]` in the truth's order. seconds: by chain, the mean over its seeds.
    """

    method: str
    unit: str
    changes: Mapping[tuple[str, int, str], Tensor]
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: str = ""

    def write(self, path: Path, truths: Truths) -> Path:
        """Write the file."""
        columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        for (chain, seed, query), changes in self.changes.items():
            names = list(truths[chain, seed].subsets)
            columns["chain"] += [chain] * len(names)
            columns["seed"] += [seed] * len(names)
            columns["query"] += [query] * len(names)
            columns["subset"] += names
            columns["change"] += changes.tolist()
        said = {
            "method": self.method,
            "sign": SIGN,
            "unit": self.unit,
            "seconds": dict(self.seconds),
            "notes": self.notes,
        }
        with atomic(path) as temporary:
            table = pa.table(columns).replace_schema_metadata({KEY: json.dumps(said)})
            pq.write_table(table, temporary, compression="zstd")
        return path

    @staticmethod
    def read(path: Path, truths: Truths) -> "Predictions":
        """Read a file and hold it against the truths that it is to predict.

        Raises:
            DescriptionError: it is no such file, or does not answer what was asked; one line says what and where.
        """
        table, said = _opened(path)
        asked = {(c, s, q): list(t.subsets) for (c, s), t in truths.items() for q in t.queries}
        found: dict[tuple[str, int, str], dict[str, float]] = {}
        for row in table.to_pylist():
            key = row["chain"], row["seed"], row["query"]
            if key not in asked or row["subset"] not in asked[key]:
                known = {
                    "chain": {c for c, _, _ in asked},
                    "seed": {s for c, s, _ in asked if c == row["chain"]},
                    "query": {q for c, s, q in asked if (c, s) == key[:2]},
                    "subset": set(asked.get(key, ())),
                }
                odd = next(name for name in known if row[name] not in known[name])
                some = ", ".join(map(str, sorted(known[odd])[:6]))
                refuse(f"{path}: there is no {odd} {row[odd]!r} in chain {row['chain']!r}; there are: {some}, ...")
            answers = found.setdefault(key, {})
            if row["subset"] in answers:
                refuse(f"{path}: two predictions for {_words(key, row['subset'])}; give one")
            if row["change"] is None or not math.isfinite(row["change"]):
                refuse(f"{path}: the change predicted for {_words(key, row['subset'])} is {row['change']}, no number")
            answers[row["subset"]] = row["change"]
        _check_whole(path, found, asked)
        changes = {k: torch.tensor([found[k][s] for s in asked[k]], dtype=torch.float64) for k in asked if k in found}
        seconds = {chain: float(value) for chain, value in said.get("seconds", {}).items()}
        return Predictions(str(said["method"]), said["unit"], changes, seconds, said.get("notes", ""))


def _opened(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """The rows and what the metadata says, both of the right kind."""
    if not path.is_file():
        refuse(f"{path}: not a file; name each file of predictions")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as cause:
        refuse(f"{path}: not a Parquet file that can be read ({str(cause).splitlines()[0]})")
    if list(table.column_names) != list(COLUMNS):
        refuse(f"{path}: the columns must be {', '.join(COLUMNS)}, got {', '.join(table.column_names)}")
    kinds = {str: _is_text, int: pa.types.is_integer, float: pa.types.is_floating}
    for name, kind in COLUMNS.items():
        if not kinds[kind](table.schema.field(name).type):
            refuse(f"{path}: column '{name}' must be of {kind.__name__}, got {table.schema.field(name).type}")
    try:
        said = json.loads((table.schema.metadata or {})[KEY])
    except (KeyError, ValueError):
        said = None
    if not isinstance(said, dict):
        refuse(
            f"{path}: the schema's metadata must hold JSON under '{KEY.decode()}' (benchmarks/two_stage/predictions.py)"
        )
    for name, allowed in (("sign", (SIGN,)), ("unit", UNITS)):
        if said.get(name) not in allowed:
            refuse(f"{path}: '{name}' must be {' or '.join(map(repr, allowed))}, got {said.get(name)!r}")
    if not isinstance(said.get("method"), str) or not said["method"]:
        refuse(f"{path}: 'method' must be the method's name, got {said.get('method')!r}")
    seconds, notes = said.get("seconds", {}), said.get("notes", "")
    if not (isinstance(seconds, dict) and all(map(_is_time, seconds.values()))):
        refuse(f"{path}: 'seconds' must be processor seconds by chain, such as {{'cifar': 1.5}}, got {seconds!r}")
    if not isinstance(notes, str):
        refuse(f"{path}: 'notes' must be a sentence, got {notes!r}")
    return table, said


def _is_text(kind: pa.DataType) -> bool:
    """Strings, however the writer's library stores them (pandas, Polars, categories)."""
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_string_view(inner))


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _check_whole(
    path: Path,
    found: Mapping[tuple[str, int, str], Mapping[str, float]],
    asked: Mapping[tuple[str, int, str], list[str]],
) -> None:
    """Refuse gaps: a chain must be answered for every seed, its mean query, and every subset of what is answered."""
    if not found:
        refuse(f"{path}: it predicts nothing")
    chains = {chain for chain, _, _ in found}
    queries = {(chain, query == MEAN) for chain, _, query in found}
    for key, subsets in asked.items():
        chain, _, query = key
        wanted = chain in chains and (query == MEAN or (chain, False) in queries)
        if wanted and key not in found:
            refuse(
                f"{path}: nothing is predicted for {_words(key)}, but for other seeds or queries of that chain it is"
            )
        missing = [name for name in subsets if name not in found.get(key, subsets)]
        if missing:
            refuse(f"{path}: no prediction for {_words(key, missing[0])} and {len(missing) - 1} more subsets")


def _words(key: tuple[str, int, str], subset: str = "") -> str:
    chain, seed, query = key
    return f"chain {chain!r}, seed {seed}, query {query!r}" + (f", subset {subset!r}" if subset else "")
