"""How far a chosen precision of matrix products moves losses and gradients, measured against none."""

from typing import Any, final

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from stagetrace.checks.directions import weights_of
from stagetrace.checks.finding import Level
from stagetrace.errors import refuse
from stagetrace.stages.data import Batch
from stagetrace.stages.gradient import differentiated
from stagetrace.stages.precision import PRECISIONS
from stagetrace.stages.risk import Risk
from stagetrace.stages.watch import Watch

__all__ = ["rounding_is_small"]

DOUBTFUL = 0.05
"""The relative error of a gradient above which a warning says so; bfloat16 holds 8 bits, half a per cent or so."""


def rounding_is_small(risk: Risk, batch: Batch) -> tuple[Level, str]:
    """Measure what rounded products do to the losses and to the gradient of a few examples.

    Losses are weighted as in the check of the derivative, so that at an optimum there is a gradient to compare with.

    Raises:
        DescriptionError: no product of the model is rounded.
    """
    dtype = PRECISIONS[risk.evaluation.precision or "bf16"]
    with torch.no_grad(), _Rounded(dtype) as counted:
        losses = risk.losses(risk.trained_values, risk.inherited_values, batch)
        right = risk.exact.losses(risk.trained_values, risk.inherited_values, batch)
    half = counted.total / 2  # the second of the two evaluations rounds nothing
    if not counted.rounded:
        refuse(
            f"{risk.where}: precision={risk.evaluation.precision!r} rounds matrix products, and the model has none to "
            "round (operations of its own, or autocast switched off inside?); leave it out"
        )
    found, expected = (_gradient(each, batch) for each in (risk, risk.exact))
    size = float(torch.linalg.vector_norm(expected))
    error = float(torch.linalg.vector_norm(found - expected)) / size if size else 0.0
    apart = float((losses - right).abs().max() / right.abs().max().clamp_min(torch.finfo(right.dtype).tiny))
    text = (
        f"{min(1.0, counted.rounded / max(1.0, half)):.0%} of the multiply-adds of a forward pass are in "
        f"{str(dtype).removeprefix('torch.')}: relative error of the gradient {error:.1e}, of the loss {apart:.1e} "
        f"({len(batch)} short example{'s' if len(batch) > 1 else ''})"
    )
    if error > DOUBTFUL:
        return Level.WARNING, f"{text}; scores are as rough, so compare some of them with precision=None"
    return Level.OK, text


def _gradient(risk: Risk, batch: Batch) -> torch.Tensor:
    return risk.trained.flatten(differentiated(risk, batch, weights_of(batch), inherited=False)[1])


@final
class _Rounded(Watch):
    """Counts floating-point operations of matrix products, and of those in a dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.total, self.rounded = dtype, 0, 0

    def seen(self, operation: Any, arguments: tuple[Any, ...], options: dict[str, Any], results: Any) -> None:
        formula = flop_registry.get(operation.overloadpacket)
        if formula is None:
            return
        count = int(formula(*arguments, **options, out_val=results))
        self.total += count
        given = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]
        self.rounded += count if any(leaf.dtype == self.dtype for leaf in given) else 0
