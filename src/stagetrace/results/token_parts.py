"""Token scores in pieces, one beside each part of a stage's scores: DIR/tokens/<stage>/part-00000.parquet.

Columns: index int64, position int32, token int64, score float32 (of a query that was not reduced `scores`, a list of
float32 with an entry a query). A row with the position -1 and the token -1 is the sum of what was left out of its
example, so that for each example the column adds up to its score.
"""

# pyarrow has no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from stagetrace.errors import DataError
from stagetrace.results.files import REMEDY, atomic, read_as
from stagetrace.results.manifest import check_identity, identity
from stagetrace.results.parts import metadata_of, of_lists, part_count, place_of, seal_of_table, to_lists
from stagetrace.results.seals import SEAL, check_seal
from stagetrace.results.tokens import REST, TokenScores

__all__ = ["TokenPart", "join_tokens", "read_tokens", "split_tokens", "write_tokens"]

_HOLDS = "tokens"


@final
@dataclass(frozen=True, eq=False)
class TokenPart:
    """The tokens of the examples of one part that were kept; fields as in `TokenScores`."""

    index: Tensor
    position: Tensor
    token: Tensor
    values: Tensor
    scored: int
    largest_left_out: float

    def __len__(self) -> int:
        """How many tokens were kept."""
        return int((self.position != REST).sum())

    @property
    def n_queries(self) -> int | None:
        """The rows of `values`; None where the query was reduced to one number."""
        return len(self.values) if self.values.ndim == 2 else None


def join_tokens(stage: str, n_examples: int, parts: Sequence[TokenPart]) -> TokenScores:
    """The tokens of all parts, in order."""
    index, position, token = (torch.cat([getattr(p, name) for p in parts]) for name in ("index", "position", "token"))
    values = torch.cat([part.values for part in parts], dim=-1)
    scored, largest = sum(part.scored for part in parts), max(part.largest_left_out for part in parts)
    return TokenScores(stage, n_examples, index, position, token, values, scored, largest)


def split_tokens(scores: TokenScores) -> Iterator[TokenPart]:
    """The parts again, beside those of the stage's scores; how many were scored is said of the first."""
    for number in range(part_count(scores.n_examples, scores.n_queries)):
        place = place_of(number, scores.n_examples, scores.n_queries)
        first, stop = torch.searchsorted(scores.index, torch.tensor([place.start, place.stop])).tolist()
        some = slice(first, stop)
        index, position, token = scores.index[some], scores.position[some], scores.token[some]
        scored = 0 if number else scores.scored
        yield TokenPart(index, position, token, scores.values[..., some], scored, scores.largest_left_out)


def write_tokens(path: Path, run: str, stage: str, n_examples: int, part: TokenPart) -> None:
    """Write the tokens of a part, atomically; the same tokens give the same bytes. run: the description's digest.

    Raises:
        ResultsError: the file system refused.
        DataError: a score that is not finite.
    """
    wrong = (~torch.isfinite(part.values)).reshape(-1, len(part.index)).any(dim=0).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        where = f"token {int(part.position[row])} of example {int(part.index[row])}"
        raise DataError(f"stage {stage!r}: the score of {where} is not finite in float32")
    columns = [
        pa.array(part.index.numpy()),
        pa.array(part.position.to(torch.int32).numpy()),
        pa.array(part.token.numpy()),
        pa.array(part.values.numpy()) if part.n_queries is None else to_lists(part.values),
    ]
    told = {
        "holds": _HOLDS,
        "n_examples": str(n_examples),
        "n_queries": str(part.n_queries or 0),
        "scored": str(part.scored),
        "largest_left_out": repr(part.largest_left_out),
    }
    metadata = identity(run, stage) | told
    table = pa.Table.from_arrays(columns, schema=_schema(part.n_queries))
    table = table.replace_schema_metadata({**metadata, SEAL: seal_of_table(table, metadata).hexdigest()})
    with atomic(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def read_tokens(path: Path, run: str, stage: str, number: int) -> TokenPart:
    """Read the tokens of part `number`.

    Raises:
        ResultsError: the file is damaged, of another run, stage, sign or format, or holds other examples.
    """
    with read_as(path, f"token scores of stage {stage!r}", REMEDY):
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            found = metadata_of(file.schema_arrow.metadata)
            check_identity(found, run, stage)
            if found.get("holds") != _HOLDS:
                raise ValueError("it holds no token scores")
            n_queries = int(found["n_queries"]) or None
            if not file.schema_arrow.remove_metadata().equals(_schema(n_queries)):
                raise ValueError("its columns are not those of token scores")
            table = file.read()
        check_seal(found, seal_of_table(table, found))
        part = TokenPart(
            _whole(table, "index"),
            _whole(table, "position"),
            _whole(table, "token"),
            _values(table, n_queries),
            int(found["scored"]),
            float(found["largest_left_out"]),
        )
        _check_rows(part, place_of(number, int(found["n_examples"]), n_queries))
        return part


def _schema(n_queries: int | None) -> Any:
    score = ("score", pa.float32()) if n_queries is None else ("scores", pa.list_(pa.float32()))
    return pa.schema([("index", pa.int64()), ("position", pa.int32()), ("token", pa.int64()), score])


def _whole(table: Any, name: str) -> Tensor:
    column = table[name].combine_chunks()
    if column.null_count:
        raise ValueError(f"its column {name} has gaps")
    return torch.from_numpy(np.array(column.to_numpy(zero_copy_only=False), dtype=np.int64))


def _values(table: Any, n_queries: int | None) -> Tensor:
    if n_queries is not None:
        return of_lists("scores", table, n_queries)
    return torch.from_numpy(np.array(table["score"].combine_chunks().to_numpy(zero_copy_only=False), dtype=np.float32))


def _check_rows(part: TokenPart, place: range) -> None:
    """Refuse rows of other examples, or out of order.

    Raises:
        ValueError: says which.
    """
    if bool(((part.index < place.start) | (part.index >= place.stop)).any()):
        raise ValueError(f"it holds tokens of examples other than {place.start} to {place.stop - 1}")
    same, later = part.index.diff() == 0, part.position.diff() > 0
    if bool((part.index.diff() < 0).any()) or bool((same & ~later).any()) or bool((part.position < REST).any()):
        raise ValueError("its tokens are not ordered by example and position")
