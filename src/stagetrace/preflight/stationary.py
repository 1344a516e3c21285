"""Is the stage where the theory assumes it is: at a minimum of what it minimised, near where it started?"""

from collections.abc import Iterator

import torch

from stagetrace.checks.finding import Finding, Level
from stagetrace.curvature.operator import LinearOperator
from stagetrace.errors import DescriptionError
from stagetrace.progress import Progress
from stagetrace.solvers.auto import ends_of_spectrum
from stagetrace.stages.gradient import batch_gradient
from stagetrace.stages.problem import Problem

LOOKED_AT = 64
"""Examples whose single gradients give the scale that the mean gradient is compared with."""

SPECTRUM_STEPS = 20


def stationarity(problem: Problem) -> Finding:
    """The gradient of what the stage minimised, next to the size of single examples' gradients.

    At a minimum they cancel. Far from one, influence is the derivative of a training that did not happen.
    """
    norm = float(torch.linalg.vector_norm((problem.stationarity + _pull(problem)).double()))
    typical = _typical_gradient(problem)
    share = norm / typical if typical else 0.0
    text = f"|gradient| {norm:.2e}, {share:.1%} of a single example's ({typical:.2e})"
    if share > 0.1:
        return Finding(
            problem.name,
            "stationarity",
            Level.WARNING,
            text + "; not at a minimum: train further, or read scores with care",
        )
    return Finding(problem.name, "stationarity", Level.OK, text)


def displacement(problem: Problem) -> Iterator[Finding]:
    """How far a proximal stage moved the shared parameters, and the pull that its link assumes."""
    if not problem.moved:
        return
    norm = float(torch.linalg.vector_norm(problem.displacement.double()))
    start = float(
        torch.linalg.vector_norm((problem.own.flatten(problem.own_values) * problem.own.mask(problem.moved)).double())
    )
    relative = norm / start if start else 0.0
    try:
        text = f"shared parameters moved by {norm:.3g} ({relative:.1%} of their norm); alpha {problem.alpha:.3g}"
        yield Finding(problem.name, "distance", Level.NOTE if relative > 0.5 else Level.OK, text)
    except DescriptionError as cause:
        yield Finding(problem.name, "distance", Level.WARNING, str(cause))


def curvature_findings(problem: Problem, operator: LinearOperator, progress: Progress) -> Iterator[Finding]:
    """The ends of the spectrum, from a short Lanczos run."""
    with progress.task(f"spectrum of stage '{problem.name}'", SPECTRUM_STEPS, "steps") as advance:
        spectrum, products = ends_of_spectrum(operator, SPECTRUM_STEPS)
        advance(products)
    text = f"eigenvalues from {spectrum.smallest:.2e} to {spectrum.largest:.2e} ({SPECTRUM_STEPS} Lanczos steps)"
    if spectrum.smallest < -1e-5 * abs(spectrum.largest):
        text += "; negative curvature: not a minimum; use GaussNewton(), or damping above its square"
        yield Finding(problem.name, "curvature", Level.WARNING, text)
    else:
        yield Finding(problem.name, "curvature", Level.OK, text)


def _pull(problem: Problem) -> torch.Tensor:
    """`2 alpha (W - W_previous)`, the gradient of the proximal pull; nothing where alpha cannot be estimated."""
    try:
        return 2 * problem.alpha * problem.displacement
    except DescriptionError:
        return torch.zeros_like(problem.displacement)


def _typical_gradient(problem: Problem) -> float:
    """Mean norm of single examples' gradients, over a few spread through the data set."""
    total = len(problem.stage.examples)
    chosen = sorted({position * total // LOOKED_AT for position in range(LOOKED_AT)})
    norms = [
        float(torch.linalg.vector_norm(batch_gradient(problem.risk, single).own.double()))
        for single in problem.risk.read([[index] for index in chosen])
    ]
    return sum(norms) / len(norms)
