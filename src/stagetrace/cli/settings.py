"""From `--solve` and the presets to each stage's solver and curvature."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar, final

import torch

from stagetrace.cli.options import EXACT_RTOL, EXACT_STEPS, QUICK_EXAMPLES, QUICK_RTOL, QUICK_STEPS
from stagetrace.cli.spec import (
    Grammar,
    applies,
    by_stage,
    count,
    damping,
    one_of,
    real,
    spaced,
    whole,
    whole_from,
    with_field,
)
from stagetrace.curvature.auto import Auto, describe_subset
from stagetrace.curvature.choices import Curvature
from stagetrace.curvature.named import CURVATURES
from stagetrace.curvature.subset import Count
from stagetrace.preflight.budget import fit
from stagetrace.preflight.units import as_size
from stagetrace.results.parts import Part, read_part, write_part
from stagetrace.solvers import Lanczos
from stagetrace.solvers.base import Solver
from stagetrace.solvers.named import SOLVERS
from stagetrace.solvers.together import MODES
from stagetrace.stages.chain import Chain
from stagetrace.tracing import describe
from stagetrace.tracing.query import Query
from stagetrace.tracing.usual import usual_solvers

T = TypeVar("T")

Preset = Literal["quick", "exact"]

OF_SOLVERS = {"damping": damping, "rtol": real, "max_steps": whole, "many": spaced(MODES)}
OF_CURVATURES = {"examples": count, "seed": whole_from(0)}
SOLVE = Grammar(
    "--solve",
    tuple(SOLVERS),
    {**OF_SOLVERS, "curvature": one_of(tuple(CURVATURES)), **OF_CURVATURES},
    "--solve finetune=lanczos:damping=0.1,max_steps=500",
)


@final
@dataclass(frozen=True)
class SolveOptions:
    """How stages are solved, as typed.

    solve: each value of `--solve`. preset: changes what was not typed, in the target's own settings too.
    """

    solve: Sequence[str] = ()
    preset: Preset | None = None


def asked(chain: Chain, typed: SolveOptions, given: Mapping[str, Any]) -> dict[str, Any]:
    """Each stage's curvature and solver, by the target's options and by what was typed, as keyword arguments."""
    curvature = curvatures(chain, typed, given.get("curvature"))
    return {"curvature": curvature, "solver": solvers(chain, typed, given.get("solver"), curvature)}


def solvers(
    chain: Chain,
    options: SolveOptions,
    given: Any,
    curvature: Mapping[str, Curvature] | None = None,
    default: Solver | None = None,
) -> dict[str, Solver]:
    """Each stage's solver: the target's or the default, that of its `curvature`, changed by what was typed."""
    default = Lanczos() if default is None else default
    chosen = describe.by_stage(chain, given, default, "solver", usual_solvers(chain, curvature))
    for stage, spec in by_stage(chain, options.solve, SOLVE).items():
        solver = chosen[stage] if spec.name is None else SOLVERS[spec.name]
        if options.preset:
            solver = _preset_solver(solver, options.preset, chain[stage].trained.dtype)
        for key, value in spec.settings.items():
            if key in OF_SOLVERS:
                solver = SOLVE.change(solver, key, value)
        chosen[stage] = solver
    return _solved(chain, chosen)


def curvatures(chain: Chain, options: SolveOptions, given: Any) -> dict[str, Curvature]:
    """Each stage's curvature: the target's or the default, changed by what was typed."""
    chosen = describe.by_stage(chain, given, Auto(), "curvature")
    for stage, spec in by_stage(chain, options.solve, SOLVE).items():
        curvature = chosen[stage]
        if "curvature" in spec.settings:
            curvature = _with_examples(CURVATURES[spec.settings["curvature"]], "auto")
        if options.preset:
            curvature = _with_examples(curvature, QUICK_EXAMPLES if options.preset == "quick" else None)
        if "examples" in spec.settings:
            curvature = SOLVE.change(curvature, "examples", spec.settings["examples"])
        if "seed" in spec.settings and (applies(curvature, "seed") or "seed" in spec.own):
            curvature = SOLVE.change(curvature, "seed", spec.settings["seed"])
        chosen[stage] = curvature
    return _solved(chain, chosen)


def _solved(chain: Chain, chosen: Mapping[str, T]) -> dict[str, T]:
    """What was chosen, without the stages that are differentiated through their recorded training."""
    return {name: choice for name, choice in chosen.items() if chain[name].recording is None}


def subsets(chain: Chain, curvature: Mapping[str, Curvature]) -> list[str]:
    """A line for each stage whose curvature is that of some of its examples."""
    notes = [(chain[name], describe_subset(choice, chain[name])) for name, choice in curvature.items()]
    return [f"{bound.stage.where}: {text}" for bound, text in notes if text]


def within(budget: str | None, chain: Chain, query: Query, how: dict[str, Any]) -> list[str]:
    """Lower the memory of curvatures and solvers in `how` to what the budget leaves; lines that say so.

    Raises:
        DescriptionError: no plan fits.
    """
    if budget is None:
        return []
    _ready_to_write()
    fitted = fit(chain, query, budget, how["curvature"], how["solver"], where="--budget")
    how |= {"curvature": fitted.curvature, "solver": fitted.solver}
    return [f"by count at most {as_size(fitted.memory)} of memory, within --budget {budget}", *fitted.notes]


def _ready_to_write() -> None:
    """Write and draw nothing, so that what the libraries for it hold from then on is counted as well."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "part"
        write_part(path, "0" * 64, "none", 0, Part(0, torch.zeros(2, 1024), 1024))
        read_part(path, "0" * 64, "none", 0)
    with suppress(ImportError):  # else the report has no pictures
        figure = import_module("matplotlib.figure").Figure()
        figure.subplots().set_title("nothing")
        figure.savefig(BytesIO(), format="svg")


def _preset_solver(solver: Solver, preset: Preset, dtype: torch.dtype) -> Solver:
    """The solver, rough or to the end; one without such settings stays as it is."""
    exact = EXACT_RTOL if dtype == torch.float64 else None  # rounding lets no other go far beyond the solver's own
    rtol, steps = (QUICK_RTOL, QUICK_STEPS) if preset == "quick" else (exact, EXACT_STEPS)
    for field, value in (("rtol", rtol), ("max_steps", steps)):
        if value is not None and applies(solver, field):
            solver = with_field(solver, field, value)
    return solver


def _with_examples(curvature: Curvature, examples: Count) -> Curvature:
    return with_field(curvature, "examples", examples) if applies(curvature, "examples") else curvature
