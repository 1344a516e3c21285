"""What a trace has to say of itself: its work, its warnings and the ends of its ranking, as plain values."""

import time
from typing import Any, cast

import torch
from torch import nn

from experiments.images import Images
from stagetrace import Scores, Solution, Trace
from stagetrace.curvature.choices import Curvature
from stagetrace.solvers.base import Solver

NEGATIVE = -1e-5
"""An eigenvalue below this share of the largest is not rounding."""


def solving(trace: Trace, curvature: dict[str, Curvature], solver: dict[str, Solver]) -> dict[str, Any]:
    """How each stage was solved: work, true residual, status, ends of the spectrum met."""
    return {
        name: {"curvature": repr(curvature[name]), "solver": str(solver[name]), **_solved(solution)}
        for name, solution in trace.solutions.items()
    }


def warnings_of(trace: Trace) -> list[str]:
    """What must not be overlooked, read off the finished trace: a resumed run does not warn again of what it kept."""
    found: list[str] = [str(notice) for notice in cast("list[object]", trace.statistics.get("notices", []))]
    for name, solution in trace.solutions.items():
        if not solution.converged:
            found.append(
                f"stage '{name}': {solution.system} {solution.status.value}: relative residual "
                f"{solution.relative_residual:.1e}, asked for {solution.tolerance:.1e}"
            )
        spectrum = solution.spectrum
        if spectrum is not None and spectrum.smallest < NEGATIVE * max(-spectrum.smallest, spectrum.largest):
            found.append(
                f"stage '{name}': the curvature has negative eigenvalues (down to {spectrum.smallest:.2e}, largest "
                f"{spectrum.largest:.2e}): the stage is not at a minimum"
            )
    return found


def scoring(scores: Scores, labels: torch.Tensor, classes: tuple[int, ...], top: int) -> dict[str, Any]:
    """The scores in numbers, and the ends of their ranking; positive = harmful; unit: query loss.

    labels: the examples' class numbers, from 0; classes: what the data set calls them.
    """
    values = scores.values
    places = (0.01, 0.25, 0.5, 0.75, 0.99)
    quantiles = torch.quantile(values, torch.tensor(places, dtype=values.dtype)).tolist()
    return {
        "examples": scores.n_examples,
        "smallest": values.min().item(),
        "largest": values.max().item(),
        "mean": values.mean().item(),
        "mean_absolute": values.abs().mean().item(),
        "share_harmful": scores.share_harmful,
        "quantiles": {f"{place:g}": value for place, value in zip(places, quantiles, strict=True)},
        "mean_by_class": {
            str(label): values[labels.cpu() == number].mean().item() for number, label in enumerate(classes)
        },
        "most_harmful": _rows(scores, top, harmful=True),
        "most_helpful": _rows(scores, top, harmful=False),
    }


@torch.no_grad()
def forward_seconds(model: nn.Module, images: Images, batch_size: int, repeats: int = 3) -> float:
    """Seconds of one forward pass over all examples, the best of some: what solving and scoring are measured in."""
    times: list[float] = []
    for _ in range(repeats):
        started = time.perf_counter()
        for batch in images.pixels.split(batch_size):
            model(batch)
        if images.pixels.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


def _solved(solution: Solution) -> dict[str, Any]:
    spectrum = solution.spectrum
    return {
        "system": str(solution.system),
        "converged": solution.converged,
        "status": solution.status.value,
        "relative_residual": solution.relative_residual,
        "asked_for": solution.tolerance,
        "products": solution.products,
        "checks": solution.checks,
        "smallest_ritz_value": None if spectrum is None else spectrum.smallest,
        "largest_ritz_value": None if spectrum is None else spectrum.largest,
        "notes": list(solution.notes),
    }


def _rows(scores: Scores, top: int, *, harmful: bool) -> list[dict[str, Any]]:
    return [
        {"index": row.index, "score": row.score, "removal_effect": row.removal_effect}
        for row in scores.top(top, harmful=harmful)
    ]
