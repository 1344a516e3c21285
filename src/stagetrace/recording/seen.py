"""What a watch sees of a step, before its numbers are read: on an accelerator they may not be there yet."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, final

import torch
from torch import Tensor, nn

from stagetrace.errors import DescriptionError
from stagetrace.recording.content import Written
from stagetrace.recording.step import Clip, Micro, Step

# of all tensors at once: private, but what torch.optim itself is made of
foreach_norm: Callable[[list[Tensor]], tuple[Tensor, ...]] = getattr(torch, "_foreach_norm")  # noqa: B009

Number = float | Tensor
"""A number; a tensor as long as it is on an accelerator, which would be waited for."""


@final
class Pending:
    """A batch on its way through the model."""

    def __init__(self, ids: Sequence[int], content: Written | str) -> None:
        self.ids, self.content = tuple(ids), content
        self.loss: Number | None = None
        self.generators = generators()
        self.still: tuple[str, ...] | None = None
        self.autocast = autocast(torch.device("cpu"))
        self.forward = self.inside = False


@final
@dataclass(frozen=True, eq=False)
class Seen:
    """A step: its batches, the groups' settings, its clippings (names, limit, kind, norm), the norm, what rested.

    average: the decay of the moving average's update after it; None without one.
    """

    batches: Sequence[Pending]
    settings: Any
    clips: Sequence[tuple[tuple[str, ...], float, float, Number]]
    norm: Number
    resting: tuple[str, ...]
    average: float | None = None


def number_of(tensor: Tensor) -> Number:
    """Its number where reading it waits for nothing, else a copy that nobody else changes."""
    return tensor.item() if tensor.device.type == "cpu" else tensor.detach().clone().reshape(())


def told(seen: Sequence[Seen]) -> list[Step]:
    """The steps with all their numbers, for which an accelerator is waited for once."""
    numbers = [batch.loss for step in seen for batch in step.batches]
    numbers += [clip[3] for step in seen for clip in step.clips] + [step.norm for step in seen]
    late = [number for number in numbers if isinstance(number, Tensor)]
    read = iter(torch.stack([number.double() for number in late]).tolist() if late else ())
    values = [next(read) if isinstance(number, Tensor) else float(number or 0.0) for number in numbers]
    losses = iter(values)
    micros = [
        [Micro(b.ids, b.content, next(losses), b.generators, b.still or (), b.autocast) for b in step.batches]
        for step in seen
    ]
    clips = [[Clip(*clip[:3], next(losses)) for clip in step.clips] for step in seen]
    return [
        Step(batches, step.settings, tuple(clipped), next(losses), step.resting, step.average)
        for step, batches, clipped in zip(seen, micros, clips, strict=True)
    ]


def generators() -> Mapping[str, Tensor]:
    """The state of the random generators that a forward pass on this machine can draw from."""
    found = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found |= {f"cuda:{number}": torch.cuda.get_rng_state(number) for number in range(torch.cuda.device_count())}
    return found


def autocast(device: torch.device) -> tuple[str, str] | None:
    """Mixed precision as it is now: the kind of device, and the dtype; None where it is off."""
    if not torch.is_autocast_enabled(device.type):
        return None
    return device.type, str(torch.get_autocast_dtype(device.type)).removeprefix("torch.")


def settings_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter group's settings as plain values."""
    return {
        name: value.item()
        if isinstance(value, Tensor)
        else tuple(_plain(value))
        if isinstance(value, list | tuple)
        else value
        for name, value in group.items()
        if name not in ("params", "param_names")
    }


def _plain(values: Iterable[Any]) -> Iterable[Any]:
    return (value.item() if isinstance(value, Tensor) else value for value in values)


def norm_of(gradients: list[Tensor]) -> Tensor:
    """The Euclidean norm over all of them."""
    if len({gradient.device for gradient in gradients}) == 1:
        norms = foreach_norm(gradients)  # faster than get_total_norm
        return torch.linalg.vector_norm(torch.stack(norms))
    return torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())


def checked_ids(ids: Sequence[int]) -> tuple[int, ...]:
    """The examples' numbers, checked.

    Raises:
        DescriptionError: there is none, or one is no whole number from 0 on.
    """
    try:
        numbers = tuple(index(each) for each in ids)
    except TypeError as cause:
        raise DescriptionError(f"recording: examples are known by their index in the data set, got {ids!r}") from cause
    if not numbers:
        raise DescriptionError("recording: a batch of no examples; give the index of each example in the data set")
    if any(number < 0 for number in numbers):
        raise DescriptionError(f"recording: examples are known by their index in the data set, from 0 on, got {ids!r}")
    return numbers


def parts_of(model: nn.Module) -> list[nn.Module]:
    """The modules that a model calls first: its own, those in lists and dicts of modules among them."""
    found = list[nn.Module]()
    for part in model.children():
        found += parts_of(part) if isinstance(part, nn.ModuleList | nn.ModuleDict) else [part]
    return found
