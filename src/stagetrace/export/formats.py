"""The formats by name, and `export`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import final

from stagetrace.errors import ResultsError, refuse
from stagetrace.export.bergson import write_bergson
from stagetrace.export.kronfluence import write_kronfluence
from stagetrace.export.orient import PROPONENT
from stagetrace.export.plain import write_csv, write_numpy
from stagetrace.export.quanda import write_quanda
from stagetrace.results import SIGN, Scores
from stagetrace.results.files import write_text
from stagetrace.results.jsonable import json_text

IDS = "ids.json"
"""Beside the files of a format that has no room for ids."""


@final
@dataclass(frozen=True)
class Format:
    """How scores are written for a tool: a folder or one file, and which sign the numbers have."""

    write: Callable[[Scores, Path], list[Path]]
    is_folder: bool
    sign: str


@final
@dataclass(frozen=True)
class Written:
    """The files that were written, and what the sign of their numbers means."""

    files: tuple[Path, ...]
    sign: str


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "quanda": Format(write_quanda, True, PROPONENT),
        "kronfluence": Format(write_kronfluence, True, PROPONENT),
        "bergson": Format(write_bergson, True, PROPONENT),
        "csv": Format(write_csv, False, SIGN),
        "numpy": Format(write_numpy, False, SIGN),
    }
)


def export(scores: Scores, format_name: str, out: str | Path) -> Written:
    """Write one stage's scores for another tool.

    Args:
        format_name: "quanda", "kronfluence" and "bergson" (a folder, float32, the sign turned: positive = proponent);
            "csv" and "numpy" (one file, our own sign: a positive score is harmful). Ids of the examples are a column
            there; beside the files of a folder they lie in `ids.json`, a list in the examples' order.
        out: a new or empty folder, or a file, which is replaced.

    Raises:
        DescriptionError: no such format.
        ResultsError: the folder holds something, or the file system refused.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = export(Scores("pretrain", torch.tensor([0.5, -2.0]).double()), "csv", f"{folder}/a.csv")
        ...     print(written.files[0].read_text())
        "index","score (+ harmful, query loss)","effect of removal (query loss; - helps)"
        0,0.5,-0.25
        1,-2,1
        <BLANKLINE>
    """
    if format_name not in FORMATS:
        refuse(f"export: the format must be one of {', '.join(FORMATS)}, got '{format_name}'")
    kind, path = FORMATS[format_name], Path(out)
    if kind.is_folder and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ResultsError(f"{path} holds something already; {format_name} takes a new or empty folder (--out)")
    if not kind.is_folder and path.is_dir():
        raise ResultsError(f"{path} is a folder; {format_name} is one file: type a name for it (--out)")
    files = kind.write(scores, path)
    if kind.is_folder and scores.ids is not None:
        write_text(path / IDS, json_text(list(scores.ids)))
        files.append(path / IDS)
    return Written(tuple(files), kind.sign)
