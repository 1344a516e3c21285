"""Where the files of an index lie, and the tensors in them: safetensors, each written whole and sealed.

DIR/index.json                              what the index is, and the digest of every file
DIR/basis/STAGE.safetensors                 `drawn` int64 [d]: the examples that the store was fitted on;
                                            of components `basis` float32 [P, r];
                                            of words `table`, `room` int64, `directions` float32 [E, E] of a row, and of
                                            each group of parameters N the coordinates that are kept (`corners.py`):
                                            `N.shape`, `N.rows`, `N.columns` int64, `N.left`, `N.right` float32
DIR/codes/STAGE/part-00000.safetensors      `codes` int8 [m, r], `scales` float32 [m];
                                            of words also (`rows.py`) `words` uint16 or int32 [w] of all examples one
                                            after the other, `ends` int32 [m] of each one's, `row_codes` int8 and
                                            `row_scales` float32 [m]
DIR/measuring/STAGE/...                     while it is built: exact scores of the measured queries; removed at the end
DIR/.lock                                   who is writing
"""

# safetensors leaves out some of its types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stagetrace.errors import ResultsError
from stagetrace.index.manifest import RECORD, IndexManifest
from stagetrace.results.files import atomic, read_as, sha256_of, stage_name
from stagetrace.results.seals import SEAL, seal_of

__all__ = [
    "PART",
    "adjoints_name",
    "basis_name",
    "check_files",
    "codes_name",
    "exact_name",
    "opened",
    "part_count",
    "read_tensors",
    "write_tensors",
]

PART = 4096
"""Examples of a file of codes. It belongs to the format: another number needs another format number."""

REMEDY = "delete this file and run the same command again"
_METADATA = "index"


def basis_name(stage: str) -> str:
    """The file of a stage's basis, relative to the folder."""
    return f"basis/{stage_name(stage)}.safetensors"


def codes_name(stage: str, number: int) -> str:
    """The file of part `number` of a stage's codes."""
    return f"codes/{stage_name(stage)}/part-{number:05d}.safetensors"


def adjoints_name(stage: str) -> str:
    """What the recall is measured with; only while the index is built."""
    return f"measuring/{stage_name(stage)}/adjoints.safetensors"


def exact_name(stage: str, number: int) -> str:
    """The exact scores of a part's examples; only while the index is built."""
    return f"measuring/{stage_name(stage)}/part-{number:05d}.safetensors"


def part_count(n_examples: int) -> int:
    """How many files of codes that many examples make."""
    return -(-n_examples // PART)


def write_tensors(path: Path, index: str, stage: str, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, atomically; the same tensors give the same bytes. index: the digest of the description.

    Raises:
        ResultsError: the file system refused.
    """
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"index": index, "stage": stage}
    text = json.dumps({**metadata, SEAL: _seal(kept, metadata)}, sort_keys=True)
    with atomic(path) as temporary:
        try:
            save_file(kept, temporary, {_METADATA: text})
        except SafetensorError as cause:
            raise OSError(str(cause)) from cause


def read_tensors(path: Path, index: str, stage: str) -> dict[str, Tensor]:
    """All tensors of a file, whose seal is checked.

    Raises:
        ResultsError: the file is missing, damaged, or of another index or stage.
    """
    with read_as(path, "a file of this index", REMEDY), safe_open(path, framework="pt") as file:
        metadata = json.loads((file.metadata() or {})[_METADATA])
        if (metadata["index"], metadata["stage"]) != (index, stage):
            raise ValueError(f"it belongs to another index, {str(metadata['index'])[:12]}, and this is {index[:12]}")
        tensors = {name: cast("Tensor", file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        if metadata[SEAL] != _seal(tensors, {key: metadata[key] for key in ("index", "stage")}):
            raise ValueError("it is damaged: what it holds is not what was written")
        return tensors


def opened(path: Path) -> AbstractContextManager[Any]:
    """The file mapped into memory, for reading parts of its tensors; it was checked when the index was opened."""
    return safe_open(path, framework="pt")


def check_files(folder: Path, manifest: IndexManifest) -> None:
    """Refuse an index of which a file is missing or not the one that was recorded; all are read.

    Raises:
        ResultsError: the message names the file.
    """
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.exists() or sha256_of(path) != digest:
            what = "damaged: it is not the file that" if path.exists() else "missing, though"
            raise ResultsError(
                f"{path} is {what} {RECORD} records it; put it back, or delete the folder and build the index again"
            )


def _seal(tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> str:
    shapes = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}
    seal = seal_of({**metadata, "tensors": shapes})
    for _, tensor in sorted(tensors.items()):
        seal.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return seal.hexdigest()
