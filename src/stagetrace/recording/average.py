"""The moving average of a training's parameters, followed as it is updated: what each update was is measured.

An average a is moved towards the parameters theta by `a <- d a + (1 - d) theta`, with a d of its own for each update
(the first one copies, d = 0; a decay may be warmed up; a stochastic weight average has d = n / (n + 1)). Whoever
updates it, and however, d is read off the numbers before and after, by least squares over all entries, and what is no
such mean is refused.
"""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from stagetrace.errors import DescriptionError, refuse
from stagetrace.recording.names import plain_name
from stagetrace.stages.space import Params

_ROUNDED = 8.0
"""An update may be off by so many roundings of the average, relative to its size."""


@final
class Average:
    """The averaged parameters of a model that is trained, as they were when they were last looked at.

    average: what holds them: `torch.optim.swa_utils.AveragedModel`, a `ModelEmaV2` or `ModelEmaV3` of timm, an
        `EMAModel` of diffusers, or a module with the same parameters. trained: the model's parameters that are stepped,
        by name.

    Raises:
        DescriptionError: it has other parameters than the model, or in another precision.
    """

    def __init__(self, average: Any, model: nn.Module, trained: Mapping[str, Tensor]) -> None:
        held = _held(average, model)
        wrong = [name for name, value in trained.items() if name not in held or held[name].shape != value.shape]
        if wrong:
            refuse(
                f"Recording(average=...): {type(average).__name__} has no '{wrong[0]}' of the shape "
                f"{list(trained[wrong[0]].shape)}, which the optimiser trains; give the average of this model"
            )
        same = [name for name, value in trained.items() if held[name] is value]
        if same:
            refuse(
                f"Recording(average=...): its '{same[0]}' is the very parameter that is trained; give an average that "
                "is a copy, such as torch.optim.swa_utils.AveragedModel(model)"
            )
        other = [name for name, value in trained.items() if held[name].dtype != value.dtype]
        if other:
            refuse(
                f"Recording(average=...): its '{other[0]}' is of {held[other[0]].dtype}, the model's of "
                f"{trained[other[0]].dtype}; keep both in one precision, since a stage is one model"
            )
        self._held = {name: held[name] for name in trained}
        self.values: Params = self._copied()

    def moved(self) -> bool:
        """Whether it was updated since it was last looked at."""
        return any(not torch.equal(now.detach(), self.values[name]) for name, now in self._held.items())

    def look(self, values: Mapping[str, Tensor], step: int) -> float | None:
        """The d of the update since the last look, towards these parameters; None where there was none.

        step: how many there were, for the message.

        Raises:
            DescriptionError: the average was changed in another way.
        """
        if not self.moved():
            return None
        before, now = self.values, self._copied()
        # d = <now - theta, before - theta> / |before - theta|^2
        across = along = size = 0.0
        for name, value in values.items():
            theta, then, new = (each.detach().double() for each in (value.to(now[name]), before[name], now[name]))
            across += float(((new - theta) * (then - theta)).sum())
            along += float((then - theta).square().sum())
            size += float(new.square().sum())
        d = across / along if along else 0.0
        off = 0.0
        for name, value in values.items():
            theta, then, new = (each.detach().double() for each in (value.to(now[name]), before[name], now[name]))
            off += float((new - d * then - (1 - d) * theta).square().sum())
        eps = max(torch.finfo(value.dtype).eps for value in now.values())
        if off > (_ROUNDED * eps) ** 2 * size or not 0 <= d <= 1 + _ROUNDED * eps:
            raise DescriptionError(
                f"recording: after step {step:,} the average was changed to what is no mean of itself and of the "
                f"parameters then (off by {(off / size) ** 0.5:.1e} of its size); update it once after each step, or "
                "each few, right after optimizer.step(), by one decay for all parameters"
            )
        self.values = now
        return min(d, 1.0)

    def _copied(self) -> Params:
        return {name: value.detach().clone() for name, value in self._held.items()}


def _held(average: Any, model: nn.Module) -> dict[str, Tensor]:
    """The averaged parameters by the names of the model's."""
    shadow = getattr(average, "shadow_params", None)  # diffusers' EMAModel: a list, in the order of what it was given
    if shadow is not None:
        named = [(plain_name(name), p) for name, p in model.named_parameters()]
        for names in ([name for name, _ in named], [name for name, p in named if p.requires_grad]):
            if len(names) == len(shadow):
                return dict(zip(names, shadow, strict=True))
        refuse(
            f"Recording(average=...): {type(average).__name__} averages {len(shadow)} parameters, the model has "
            f"{len(named)}; make it of model.parameters()"
        )
    inside = (getattr(average, name, None) for name in ("module", "ema"))
    inner = next((found for found in inside if isinstance(found, nn.Module)), average)
    if not isinstance(inner, nn.Module):
        refuse(
            f"Recording(average=...): got a {type(average).__name__}; give a torch.optim.swa_utils.AveragedModel, a "
            "ModelEma of timm, an EMAModel of diffusers, or a module with the averaged parameters"
        )
    return {plain_name(name): p for name, p in inner.named_parameters()}
