"""Is the model a function of the parameters it is called with, whatever it was called with before?"""

import torch

from stagetrace.checks.directions import direction_of
from stagetrace.checks.rounding import Rounding
from stagetrace.errors import DescriptionError
from stagetrace.stages.data import Batch
from stagetrace.stages.evaluation import Evaluation
from stagetrace.stages.risk import Risk

STEP = 0.05
"""How far the parameters are moved, over their own size: enough to be seen in any precision."""


def keeps_no_state(risk: Risk, batch: Batch, fresh: Evaluation, rounding: Rounding) -> str:
    """Refuse a model that answers other parameters with what it kept of the first: a cache of fused weights, say.

    fresh: a copy of the model that was never called.

    Raises:
        DescriptionError: the two copies give different losses at the same, moved parameters.
    """
    point = {**risk.inherited_values, **risk.trained_values}
    along = direction_of(point)
    moved = {name: value + (STEP * along[name]).to(value) for name, value in point.items()}
    losses = []
    for evaluation in (risk.evaluation, fresh):
        with torch.no_grad():
            outputs = evaluation(moved, risk.objective.outputs, batch.content)
            losses.append(risk.reduce(outputs, batch))
    used, first = losses
    gap = (used - first).abs()
    if bool((gap > rounding.of(first)).any()):
        worst = int(gap.argmax())
        raise DescriptionError(
            f"{risk.where}: the model keeps something of an earlier call: at the same parameters the loss of example "
            f"{batch.indices[worst]} is {float(first[worst]):.6g} in a new copy of it and {float(used[worst]):.6g} in "
            "one that was called before (a cache of weights, filled in eval mode?); empty the cache before each call, "
            "or do not fill it"
        )
    return "a model that was called before gives the same losses as a new copy"
