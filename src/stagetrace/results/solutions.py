"""How a stage was solved, as safetensors: the value as a tensor, everything else as JSON in the metadata."""

# safetensors leaves out some of its types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stagetrace.results.files import REMEDY, atomic, read_as
from stagetrace.results.jsonable import JSON, from_json, to_json
from stagetrace.results.manifest import check_identity, identity
from stagetrace.results.seals import SEAL, check_seal, seal_of
from stagetrace.solvers.base import Solution
from stagetrace.solvers.system import Equation

_TENSOR = "adjoint"
_RECORD = "solution"


def write_solution(path: Path, run: str, stage: str, solution: Solution) -> None:
    """Write a solution, atomically, its value in its own dtype; the same solution gives the same bytes.

    run: the digest of the run's description.

    Raises:
        ResultsError: the file system refused.
    """
    value = solution.value.detach().cpu().contiguous()
    metadata: dict[str, Any] = {**identity(run, stage), _RECORD: solution_record(solution)}
    metadata[SEAL] = _seal_of(value, metadata).hexdigest()
    with atomic(path) as temporary:
        try:
            # one entry only: safetensors writes the entries of the metadata in no fixed order
            save_file({_TENSOR: value}, temporary, {_RECORD: json.dumps(metadata)})
        except SafetensorError as cause:
            raise OSError(str(cause)) from cause


def read_solution(path: Path, run: str, stage: str) -> Solution:
    """Read a solution back: every field as it was, the value on the CPU.

    Raises:
        ResultsError: the file is damaged, of another run or stage, or something else.
    """
    with read_as(path, "a solution", REMEDY):
        with safe_open(path, framework="pt") as file:
            metadata = _metadata(file)
            check_identity(metadata, run, stage)
            if list(file.keys()) != [_TENSOR]:
                raise ValueError(f"its tensors are {', '.join(file.keys())}, not {_TENSOR}")
            stored = file.get_slice(_TENSOR)  # its type and size, before it is read
            if len(stored.get_shape()) not in (1, 2) or stored.get_dtype() not in ("F64", "F32", "F16", "BF16"):
                raise ValueError(
                    f"its tensor is {stored.get_dtype()} {stored.get_shape()}, not numbers [dim] or [dim, k]"
                )
            value = cast("Tensor", file.get_tensor(_TENSOR)).clone()
        check_seal(metadata, _seal_of(value, metadata))
        record = dict(metadata[_RECORD])
        del record["system"]
        equation = Equation.of(cast("Mapping[str, object]", record.pop("equation")))
        return from_json(Solution, record, value=value, system=equation)


def run_of_solution(path: Path) -> str | None:
    """The digest that the file carries of its run's description."""
    with safe_open(path, framework="pt") as file:
        return _metadata(file)["run"]


def solution_record(solution: Solution) -> Mapping[str, JSON]:
    """Every field of a solution but its value, for run.json; the system in words, and as `read_solution` takes it."""
    system = {"system": str(solution.system), "equation": solution.system.record()}
    return {**system, **to_json(solution, "solution", omit={"value", "system"})}


def _metadata(file: Any) -> dict[str, Any]:
    return dict(json.loads((file.metadata() or {})[_RECORD]))


def _seal_of(value: Tensor, metadata: Mapping[str, object]) -> Any:
    seal = seal_of({**metadata, "dtype": str(value.dtype), "shape": list(value.shape)})
    seal.update(value.contiguous().view(torch.uint8).numpy())
    return seal
