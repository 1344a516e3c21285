"""Is the stage where the theory assumes it is: at a minimum of what it minimised, near where it started?"""

from collections.abc import Iterator

import torch
from torch import Tensor

from stagetrace.checks.finding import Finding, Level
from stagetrace.curvature.operator import LinearOperator
from stagetrace.curvature.subset import seeded_subset
from stagetrace.errors import DescriptionError
from stagetrace.preflight.work import Look
from stagetrace.progress import Progress
from stagetrace.solvers.base import Solver
from stagetrace.solvers.damping import cut_of
from stagetrace.stages.gradient import batch_gradient, mean_gradient
from stagetrace.stages.problem import Problem
from stagetrace.stages.space import Params

LOOKED_AT = 64
"""Examples whose single gradients give the scale that the mean gradient is compared with."""


def stationarity(problem: Problem, progress: Progress) -> Finding:
    """The gradient of what the stage minimised, next to the size of single examples' gradients.

    At a minimum they cancel. Far from one, influence is the derivative of a training that did not happen. Of more than
    1,000 examples the mean is that of 1,000, whose standard error is taken off: `|g|^2 = |mean|^2 - spread / n`.
    """
    total = len(problem.stage.examples)
    indices = seeded_subset(total, "auto", seed=0)
    values = problem.own.flatten(problem.own_values)
    mean = mean_gradient(problem.risk, indices, progress=progress).own.squeeze(1)
    found = (mean + problem.stage.weight_decay * values + _pull(problem, values)).double()
    typical, spread = _single_gradients(problem, mean)
    error = (spread * (1 / len(indices) - 1 / total)) ** 0.5
    norm = max(0.0, float(found @ found) - error**2) ** 0.5
    share = norm / typical if typical else 0.0
    text = f"|gradient| {norm:.2e}, {share:.1%} of a single example's ({typical:.2e})"
    if len(indices) < total:
        text += f"; from {len(indices):,} of {total:,} examples, standard error {error:.1e}"
    if share > 0.1:
        return Finding(
            problem.name,
            "stationarity",
            Level.WARNING,
            text + "; not at a minimum: train further, or read scores with care",
        )
    return Finding(problem.name, "stationarity", Level.OK, text)


def displacement(problem: Problem) -> Iterator[Finding]:
    """How far a stage moved the shared parameters, and the pull that its link assumes."""
    if not problem.moved:
        return
    norm, start = _norm(problem.moved_values.displacement), _norm(problem.moved_values.values)
    relative = norm / start if start else 0.0
    try:
        settings = [f"; {name} {_short(value)}" for name, value in problem.link_settings.items()]
        text = f"shared parameters moved by {norm:.3g} ({relative:.1%} of their norm){''.join(settings)}"
        yield Finding(problem.name, "distance", Level.NOTE if relative > 0.5 else Level.OK, text)
    except DescriptionError as cause:
        yield Finding(problem.name, "distance", Level.WARNING, str(cause))


def curvature_finding(problem: Problem, operator: LinearOperator, solver: Solver, look: Look) -> Finding:
    """The ends of the spectrum, and what to type where the solve does not deal with its negative end."""
    low, high = look.spectrum.smallest, look.spectrum.largest
    text = f"eigenvalues from {low:.2e} to {high:.2e} ({look.products} Lanczos steps"
    text += ")" if look.whole else f" over {look.examples:,} of {look.of:,} examples: fewer look more negative)"
    if low >= -1e-5 * abs(high):
        return Finding(problem.name, "curvature", Level.OK, text)
    text += "; negative curvature: not a minimum"
    system = solver.rule.given(operator, look.spectrum)
    if system.spectrum is not None:
        done = "inverts Gauss-Newton plus its size" if system.matrix == "G" else "damps by its size"
        return Finding(problem.name, "curvature", Level.NOTE, f"{text}, so the solve {done}")
    if abs(system.filter.shift) >= -low:
        return Finding(problem.name, "curvature", Level.NOTE, f"{text}; the damping is above its size")
    return Finding(problem.name, "curvature", Level.WARNING, f"{text}; {_advice(problem, operator, low, high)}")


def _advice(problem: Problem, operator: LinearOperator, low: float, high: float) -> str:
    """What to type."""
    cut = cut_of(low, high, operator.dtype)
    stage = problem.name
    return (
        f"type --solve {stage}=lanczos:damping=auto,curvature=auto (the default), or "
        f"--solve {stage}=cg:damping={cut:.1g},curvature=gauss-newton"
    )


def _pull(problem: Problem, values: Tensor) -> Tensor:
    """`2 a (W - W')`, the gradient of the link's penalty; nothing where its strength cannot be estimated."""
    try:
        return problem.pull * (values - problem.anchor)
    except DescriptionError:
        return torch.zeros_like(values)


def _norm(values: Params) -> float:
    return float(torch.linalg.vector_norm(torch.cat([value.double().flatten() for value in values.values()])))


def _short(value: float | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _single_gradients(problem: Problem, mean: Tensor) -> tuple[float, float]:
    """Of single examples' gradients, over a few spread through the data set: the mean norm, and the mean squared
    distance from the `mean` gradient.
    """
    total = len(problem.stage.examples)
    chosen = sorted({position * total // LOOKED_AT for position in range(LOOKED_AT)})
    norms, spread = 0.0, 0.0
    for single in problem.risk.read([[index] for index in chosen]):
        gradient = batch_gradient(problem.risk, single).own.squeeze(1).double()
        norms += float(torch.linalg.vector_norm(gradient))
        spread += float(torch.linalg.vector_norm(gradient - mean.double())) ** 2
    return norms / len(chosen), spread / len(chosen)
