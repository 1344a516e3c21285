"""Why a replay does not come out as recorded, where that can be told from the numbers."""

from typing import final

import torch
from torch import Tensor

from stagetrace.recording.step import Step
from stagetrace.replay.step import Slopes
from stagetrace.stages.space import Params

_CLOSE = 1e-3
"""How near to the recorded norm an explanation must come, relative to it."""


def penalty_in_loss(step: Step, found: Slopes, trained: Params) -> str:
    """A sentence that says which L2 penalty was in the loss, if one explains both the loss and the norm; else "".

    With l the mean of the stage's losses over the batch and S some parameters, `loss = l + c |S|^2` tells c; the
    gradient is then that of l, and `2 c S` in S. Tried are all parameters, and the matrices among them.
    """
    if len(step.micros) != 1 or found.scales[0].whole:
        return ""
    (micro,), (scale,) = step.micros, found.scales
    batch, recorded = len(micro.ids), step.clips[0].norm if step.clips else step.norm
    mean = micro.loss / scale.factor / batch
    slopes = {name: raw / (scale.factor * batch) for name, raw in found.raw.items()}
    every = {name: trained[name] for name in slopes}
    matrices = {name: value for name, value in every.items() if value.ndim > 1}
    for which, penalised in (("", every), (" in matrices", matrices)):
        squares = _squares(penalised)
        c = (micro.loss - mean) / squares if squares else 0.0
        norm = _squares({n: g + 2 * c * every[n] if n in penalised else g for n, g in slopes.items()}) ** 0.5
        if c > 0 and abs(norm - recorded) <= _CLOSE * recorded:
            return (
                f"What went backward is the mean of the stage's losses and {c:.3g} times the sum of the squared "
                f"parameters{which}: an L2 penalty written into the loss, which is no example's. Leave it to the "
                f"optimiser (torch.optim.Adam or SGD with weight_decay={2 * c:.3g} do the same), and record that. "
            )
    return ""


@final
class Constant:
    """Whether all losses that went backward were one number, whatever the examples' losses were."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None
        self._alike, self._varied = 0, False

    def seen(self, loss: float, factor: float) -> bool:
        """One more batch: its recorded loss, and by what its summed losses were multiplied. True once it is told."""
        if self._first is None:
            self._first = loss, factor
        if self._alike >= 0 and abs(loss - self._first[0]) <= 1e-6 * abs(loss):
            self._alike += 1
            self._varied |= abs(factor / self._first[1] - 1) > _CLOSE
        else:
            self._alike = -1
        return self._alike > 3 and self._varied


def _squares(values: Params) -> float:
    parts: list[Tensor] = [value.detach().double().square().sum() for value in values.values()]
    return float(torch.stack(parts).sum()) if parts else 0.0
