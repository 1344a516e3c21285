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
from stagetrace.solvers.damping import cutoff
from stagetrace.solvers.early_stopping import EarlyStopping
from stagetrace.solvers.flow import Flow
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.gradient import batch_gradient, mean_gradient
from stagetrace.stages.space import Params

LOOKED_AT = 64
"""Examples whose individual gradients give the scale for the mean gradient."""


def stationarity(bound: BoundStage, solver: Solver, progress: Progress) -> Finding:
    """The gradient of what the stage minimised, next to the size of single examples' gradients.

    At a minimum they cancel. Far from one, a score is the derivative of a training that did not happen, unless the
    solver assumes no minimum. Of more than
    1,000 examples the mean is that of 1,000, whose standard error is subtracted: `|g|^2 = |mean|^2 - spread / n`.
    """
    total = len(bound.stage.examples)
    indices = seeded_subset(total, "auto", seed=0)
    values = bound.trained.flatten(bound.trained_values)
    mean = mean_gradient(bound.risk, indices, progress=progress).trained.squeeze(1)
    found = (mean + bound.decay * values + _pull(bound, values)).double()
    typical, spread = _single_gradients(bound, mean)
    error = (spread * (1 / len(indices) - 1 / total)) ** 0.5
    norm = max(0.0, float(found @ found) - error**2) ** 0.5
    share = norm / typical if typical else 0.0
    text = f"|gradient| {norm:.2e}, {share:.1%} of a single example's ({typical:.2e})"
    if len(indices) < total:
        text += f"; from {len(indices):,} of {total:,} examples, standard error {error:.1e}"
    if share > 0.1 and isinstance(solver, EarlyStopping):
        return Finding(bound.name, "stationarity", Level.OK, text + "; not at a minimum, and none is assumed")
    if share > 0.1:
        return Finding(
            bound.name,
            "stationarity",
            Level.WARNING,
            text + "; not at a minimum: train further, or read scores with care",
        )
    return Finding(bound.name, "stationarity", Level.OK, text)


def displacement(bound: BoundStage) -> Iterator[Finding]:
    """How far a stage changed the shared parameters, and the pull that its link assumes."""
    if not bound.anchored_to:
        return
    norm, start = _norm(bound.anchored.displacement), _norm(bound.anchored.values)
    relative = norm / start if start else 0.0
    try:
        settings = [f"; {name} {_short(value)}" for name, value in bound.link_settings.items()]
        text = f"shared parameters changed by {norm:.3g} ({relative:.1%} of their norm){''.join(settings)}"
        yield Finding(bound.name, "distance", Level.NOTE if relative > 0.5 else Level.OK, text)
    except DescriptionError as cause:
        yield Finding(bound.name, "distance", Level.WARNING, str(cause))


def curvature_finding(bound: BoundStage, operator: LinearOperator, solver: Solver, look: Look) -> Finding:
    """The extreme eigenvalues, and what to type where the solve does not handle negative curvature."""
    low, high = look.spectrum.smallest, look.spectrum.largest
    text = f"eigenvalues from {low:.2e} to {high:.2e} ({look.products} Lanczos steps"
    text += ")" if look.whole else f" over {look.examples:,} of {look.of:,} examples: a subset looks more negative)"
    if low >= -1e-5 * abs(high):
        return Finding(bound.name, "curvature", Level.OK, text)
    text += "; negative curvature: not a minimum"
    system = solver.rule.with_spectrum(operator, look.spectrum)
    if isinstance(system.filter, Flow):
        done = "takes Gauss-Newton in its place" if system.matrix == "G" else "lets effects grow along it"
        level = Level.NOTE if system.matrix == "G" else Level.WARNING
        return Finding(
            bound.name, "curvature", level, f"{text}, which early stopping does not assume; the solve {done}"
        )
    if system.spectrum is not None:
        done = "inverts Gauss-Newton plus its size" if system.matrix == "G" else "damps by its size"
        return Finding(bound.name, "curvature", Level.NOTE, f"{text}, so the solve {done}")
    if abs(system.linear.shift) >= -low:
        return Finding(bound.name, "curvature", Level.NOTE, f"{text}; the damping is above its size")
    return Finding(bound.name, "curvature", Level.WARNING, f"{text}; {_advice(bound, operator, low, high)}")


def _advice(bound: BoundStage, operator: LinearOperator, low: float, high: float) -> str:
    """What to type."""
    cut = cutoff(low, high, operator.dtype)
    stage = bound.name
    return (
        f"type --solve {stage}=lanczos:damping=auto,curvature=auto (the default), or "
        f"--solve {stage}=cg:damping={cut:.1g},curvature=gauss-newton"
    )


def _pull(bound: BoundStage, values: Tensor) -> Tensor:
    """`2 a (W - W')`, the gradient of the link's penalty; nothing where its strength cannot be estimated."""
    try:
        return bound.pull * (values - bound.anchor)
    except DescriptionError:
        return torch.zeros_like(values)


def _norm(values: Params) -> float:
    return float(torch.linalg.vector_norm(torch.cat([value.double().flatten() for value in values.values()])))


def _short(value: float | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _single_gradients(bound: BoundStage, mean: Tensor) -> tuple[float, float]:
    """Of single examples' gradients, over a few spread through the data set: the mean norm, and the mean squared
    distance from the `mean` gradient.
    """
    total = len(bound.stage.examples)
    chosen = sorted({position * total // LOOKED_AT for position in range(LOOKED_AT)})
    norms, spread = 0.0, 0.0
    for single in bound.risk.read([[index] for index in chosen]):
        gradient = batch_gradient(bound.risk, single).trained.squeeze(1).double()
        norms += float(torch.linalg.vector_norm(gradient))
        spread += float(torch.linalg.vector_norm(gradient - mean.double())) ** 2
    return norms / len(chosen), spread / len(chosen)
