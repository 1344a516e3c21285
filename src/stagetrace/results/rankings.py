"""Rankings as plain files: the ends of each query's ranking, and a record of what was asked and how it was solved.

DIR/ranking.json               what was asked, how each stage was solved, and the digest of every file
DIR/rankings/<stage>.parquet   query, harmful, place, index, score, removal_effect: a row for each example that was kept
                               and id, where the stage's examples have ids
"""

# pyarrow has no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from stagetrace.errors import ResultsError
from stagetrace.results.files import atomic, filled, holds, read_as, sha256_of, stage_name
from stagetrace.results.jsonable import JSON, from_json, to_json
from stagetrace.results.manifest import check_identity, identity, refuse_different, refuse_unidentified, versions
from stagetrace.results.ranking import Ranking
from stagetrace.results.seals import digest_of, read_record, write_record
from stagetrace.results.sign import SIGN
from stagetrace.results.solutions import solution_record
from stagetrace.solvers.base import Solution
from stagetrace.solvers.system import Equation

__all__ = ["RECORD", "is_kept", "read_rankings", "write_rankings"]

RECORD = "ranking.json"
FORMAT = 1

_AGAIN = "delete this folder and rank again"


@final
@dataclass(frozen=True)
class _Record:
    """The content of ranking.json; stages stand in chain order, and `solutions` have every field but their value."""

    description: Mapping[str, JSON]
    sign: str = SIGN
    solutions: Mapping[str, JSON] = field(default_factory=dict[str, JSON])
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    versions: Mapping[str, str] = field(default_factory=versions)

    @property
    def run(self) -> str:
        """The digest of the description, which every file carries."""
        return digest_of(self.description)


def write_rankings(found: Mapping[str, Ranking], out: Path, description: Mapping[str, JSON]) -> None:
    """Write rankings to a folder, all of them or none.

    out: new, empty, or a folder of the same rankings.
    description: fingerprints and settings: what makes these rankings these.

    Raises:
        ResultsError: the file system refused.
    """
    record = _Record(to_json(description, "description"))
    with filled(out, first=RECORD) as staging:
        files: dict[str, str] = {}
        for stage, ranking in found.items():
            name = _name(stage)
            with atomic(staging / name) as temporary:
                pq.write_table(_table(record.run, ranking), temporary, compression="zstd")
            files[name] = sha256_of(staging / name)
        solutions = {stage: _solution(ranking) for stage, ranking in found.items()}
        write_record(staging / RECORD, to_json(replace(record, solutions=solutions, files=files), RECORD), FORMAT)


def read_rankings(folder: str | Path) -> dict[str, Ranking]:
    """The rankings in a folder, by stage in chain order; a solution's value was not kept.

    Raises:
        ResultsError: there are none, or a file is missing, damaged or of other rankings.
    """
    folder = Path(folder)
    record = _read_record(folder)
    found: dict[str, Ranking] = {}
    for stage, solution in record.solutions.items():
        path = folder / _name(stage)
        if not path.exists():
            raise ResultsError(f"{path} is missing; {_AGAIN}")
        with read_as(path, f"the ranking of stage {stage!r}", _AGAIN):
            if record.files.get(_name(stage)) != sha256_of(path):
                raise ValueError("it is damaged: what it holds is not what was written")
            found[stage] = _ranking(pq.read_table(path), record.run, stage, _read_solution(solution))
    return found


def is_kept(out: Path, description: Mapping[str, JSON]) -> bool:
    """Whether the folder holds these very rankings; nothing is written.

    Raises:
        ResultsError: it holds something else, or other rankings: the message lists what differs.
    """
    if not holds(out, RECORD):
        return False
    wanted = to_json(description, "description")
    refuse_unidentified(out, "ranking", wanted)
    refuse_different(out, "ranking", _read_record(out).description, wanted)
    return True


def _name(stage: str) -> str:
    return f"rankings/{stage_name(stage)}.parquet"


def _read_record(folder: Path) -> _Record:
    path = folder / RECORD
    if not path.exists():
        raise ResultsError(f"{folder} holds no rankings: it has no {RECORD}; give the folder of `stagetrace rank`")
    content = read_record(path, "the record of rankings", (FORMAT,), "read it with the version that wrote it", _AGAIN)
    with read_as(path, "the record of rankings", _AGAIN):
        return from_json(_Record, content)


def _solution(ranking: Ranking) -> JSON:
    return None if ranking.solution is None else dict(solution_record(ranking.solution))


def _read_solution(record: JSON) -> Solution | None:
    if not isinstance(record, dict):
        return None
    kept: dict[str, Any] = {key: value for key, value in record.items() if key != "system"}
    equation = Equation.of(kept.pop("equation"))
    return from_json(Solution, kept, value=torch.zeros(0, len(kept["relative_residuals"])), system=equation)


def _table(run: str, ranking: Ranking) -> Any:
    """A row for each query, end and place; the file's own metadata say the sign, so that it cannot be misread alone."""
    queries, k = ranking.harmful.shape
    ends = ((True, ranking.harmful, ranking.harmful_scores), (False, ranking.helpful, ranking.helpful_scores))
    scores = torch.cat([each.flatten() for _, _, each in ends]).contiguous()
    columns: dict[str, Any] = {
        "query": np.tile(np.repeat(np.arange(queries), k), 2),
        "harmful": np.repeat([flag for flag, _, _ in ends], queries * k),
        "place": np.tile(np.arange(1, k + 1, dtype=np.int32), 2 * queries),
        "index": torch.cat([indices.flatten() for _, indices, _ in ends]).numpy(),
        "score": scores.numpy(),
        "removal_effect": (-scores.double() / ranking.n_examples).numpy(),
    }
    if ranking.named:
        columns["id"] = [ranking.named[index] for index in columns["index"].tolist()]
    shape = {"n_examples": str(ranking.n_examples), "n_queries": str(queries), "kept": str(k)}
    return pa.table(columns).replace_schema_metadata(identity(run, ranking.stage) | shape)


def _ranking(table: Any, run: str, stage: str, solution: Solution | None) -> Ranking:
    found = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    check_identity(found, run, stage)
    queries, kept = int(found["n_queries"]), int(found["kept"])

    def ends(name: str) -> Tensor:
        return torch.from_numpy(table[name].to_numpy().copy()).view(2, queries, kept)

    (harmful, helpful), (most, least) = ends("index"), ends("score")
    ids = table["id"].to_pylist() if "id" in table.column_names else []
    named = dict(zip(table["index"].to_pylist(), ids, strict=True)) if ids else {}
    return Ranking(stage, int(found["n_examples"]), harmful, most, helpful, least, solution, named)
