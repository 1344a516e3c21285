"""The gradient of a model in shards beside differences of its losses: all processes look at the same examples."""

import torch
from torch import Tensor

from stagetrace.checks.derivative import AGREED, JUDGED
from stagetrace.checks.directions import direction_of
from stagetrace.checks.finding import Level
from stagetrace.parallel import world
from stagetrace.stages.data import Batch
from stagetrace.stages.gradient import differentiated
from stagetrace.stages.risk import Risk
from stagetrace.stages.shards import differentiating
from stagetrace.stages.space import Params

__all__ = ["gradient_in_shards"]


def gradient_in_shards(risk: Risk, batch: Batch) -> tuple[Level, str]:
    """Compare the derivative along one direction with central differences of two widths, which tell their error."""
    point = {**risk.inherited_values, **risk.trained_values}
    direction = direction_of(point)
    with differentiating():
        _, trained, inherited = differentiated(risk, batch)
    slopes = {**trained, **inherited}  # summed over processes, which all took the same examples
    terms = [(slopes[name].double() * direction[name].double()).sum() for name in point]
    shares = world().sum(torch.stack(terms)) / world().size
    width = torch.finfo(risk.trained.dtype).eps ** (1 / 3)

    def difference(h: float) -> Tensor:
        ahead, behind = (_total(risk, batch, _moved(point, direction, sign * h)) for sign in (1, -1))
        return (ahead - behind) / (2 * h)

    near, far = difference(width), difference(2 * width)
    scale, apart = float(shares.abs().sum()), float((near - shares.sum()).abs())
    uncertainty = float((near - far).abs())
    if not scale or uncertainty > JUDGED * scale:
        return Level.OK, "the gradient was not judged: the loss is too rough, or too flat, along a random direction"
    if apart > AGREED * scale + 3 * uncertainty:
        return Level.WARNING, (
            "the gradient that autograd gives is not the derivative of the loss: they differ by "
            f"{apart / scale:.1%} along a random direction; training followed that gradient, and scores are only as "
            "correct as it is"
        )
    return (
        Level.OK,
        f"agrees with differences to {apart / scale:.0e} (in shards no more is checked)",
    )


def _total(risk: Risk, batch: Batch, at: Params) -> Tensor:
    trained, inherited = ({name: at[name] for name in space.names} for space in (risk.trained, risk.inherited))
    with torch.no_grad():
        return risk.losses(trained, inherited, batch).double().sum().cpu()


def _moved(point: Params, direction: Params, step: float) -> Params:
    return {name: value + step * direction[name] for name, value in point.items()}
