"""The columns of a part of the scores: which there are, of what type, and how many values each has."""

# pyarrow has no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from typing import Any

import pyarrow as pa

__all__ = ["ID", "check_layout", "schema_of"]

ID = "id"
"""The column of the examples' ids."""


def check_layout(file: Any, rows: int, n_queries: int | None) -> None:
    """Refuse columns of other types or lengths than a part of that shape has, before they are read."""
    schema, each = file.schema_arrow, n_queries or 1
    has = {"with_parts": "via_shared" in schema.names, "with_ids": ID in schema.names}
    kinds = [schema_of(matrix=n_queries is not None, **has)]
    if n_queries is not None:
        kinds.append(schema_of(matrix=True, **has, older=True))
    if not any(schema.remove_metadata().equals(kind) for kind in kinds):
        columns = ", ".join(f"{name} {kind}" for name, kind in zip(schema.names, schema.types, strict=True))
        raise ValueError(f"its columns are {columns[:200]}: not those of scores")
    if file.metadata.num_rows != rows:
        raise ValueError(f"it has {file.metadata.num_rows} rows, not {rows}")
    groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
    for column, name in enumerate(schema.names):
        values = sum(group.column(column).num_values for group in groups)
        if values != (rows if name in ("index", ID) else rows * each):
            raise ValueError(f"its column {name} holds {values} values, not {rows * each}")


def schema_of(*, matrix: bool, with_parts: bool, with_ids: bool, older: bool = False) -> Any:
    """older: a matrix as versions before wrote it, with the removal effects."""
    number = pa.list_(pa.float32()) if matrix else pa.float64()
    effect = () if matrix and not older else ("removal_effect",)
    names = ["scores" if matrix else "score", *effect, *(("via_shared", "via_head") if with_parts else ())]
    last = [(ID, pa.large_string())] if with_ids else []
    return pa.schema([("index", pa.int64()), *((name, number) for name in names), *last])
