"""A solution as a safetensors file: the value as a tensor, everything else as JSON in its metadata."""

# safetensors leaves out some of its types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stagetrace.errors import ResultsError
from stagetrace.results.atomic import atomic
from stagetrace.results.json_value import JSON, plain
from stagetrace.solvers.base import Solution, Spectrum, Status
from stagetrace.solvers.system import Equation

_TENSOR = "adjoint"
_RECORD = "solution"


def write_solution(path: Path, solution: Solution) -> None:
    """Write a solution, atomically, its value in its own dtype; the same solution gives the same bytes.

    Raises:
        ResultsError: the file system refused.
    """
    value = solution.value.detach().cpu().contiguous()
    # one entry only: safetensors writes the entries of the metadata in no fixed order
    metadata = {_RECORD: json.dumps(solution_record(solution))}
    with atomic(path) as temporary:
        try:
            save_file({_TENSOR: value}, temporary, metadata)
        except SafetensorError as cause:
            raise OSError(str(cause)) from cause


def read_solution(path: Path) -> Solution:
    """Read a solution back: every field as it was, the value on the CPU.

    Raises:
        ResultsError: the file is damaged or is something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})[_RECORD])
            return _solution(cast("Tensor", file.get_tensor(_TENSOR)).clone(), record)
    except (SafetensorError, OSError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as cause:
        raise ResultsError(
            f"{path} is not a solution that can be read ({' '.join(str(cause).split())}); "
            f"delete this file and run the same command again"
        ) from cause


def solution_record(solution: Solution) -> Mapping[str, JSON]:
    """Every field of a solution but its value, for run.json: statuses by name, a number that is not finite in words."""
    fields = {
        "system": str(solution.system),
        "equation": solution.system.record(),
        "relative_residuals": [float(residual) for residual in solution.relative_residuals],
        "products": int(solution.products),
        "checks": int(solution.checks),
        "steps": int(solution.steps),
        "statuses": [status.name for status in solution.statuses],
        "tolerance": float(solution.tolerance),
        "spectrum": None if solution.spectrum is None else [float(value) for value in solution.spectrum.ritz],
        "notes": list(solution.notes),
    }
    return cast("Mapping[str, JSON]", plain(fields, "solution"))


def _solution(value: Tensor, record: Mapping[str, object]) -> Solution:
    ritz = record["spectrum"]
    return Solution(
        value=value,
        system=_equation(record),
        relative_residuals=_floats(record["relative_residuals"]),
        products=_count(record["products"]),
        checks=_count(record["checks"]),
        steps=_count(record["steps"]),
        statuses=tuple(Status[name] for name in cast("Sequence[str]", record["statuses"])),
        tolerance=float(cast("float | str", record["tolerance"])),
        spectrum=None if ritz is None else Spectrum(_floats(ritz)),
        notes=tuple(map(str, cast("Sequence[object]", record["notes"]))),
    )


def _equation(record: Mapping[str, object]) -> Equation:
    """The equation, which solutions written before it was recorded have in words alone."""
    if "equation" in record:
        return Equation.of(cast("Mapping[str, object]", record["equation"]))
    found = re.fullmatch(r"\(?([HG])(\^2)?(?: \+ (\S+) I\))? x = (?:[HG] )?b", str(record["system"]))
    if found is None:
        raise ValueError(f"it solves {record['system']!r}, which is no equation")
    matrix, squared, damping = found.groups()
    filter = "Shift" if not squared else "Tikhonov" if damping else "Squared"
    return Equation.of({"matrix": matrix, "filter": filter, "damping": float(damping or 0)})


def _count(number: object) -> int:
    if not isinstance(number, int) or number < 0:
        raise ValueError(f"it counts {number!r}, not a whole number")
    return number


def _floats(numbers: object) -> tuple[float, ...]:
    return tuple(float(number) for number in cast("Sequence[float | str]", numbers))
