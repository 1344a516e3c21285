"""What is recorded of a training: its steps, the batches in each, and its state now and then."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor

from stagetrace.recording.content import Written
from stagetrace.stages.space import Params

Settings = Mapping[str, Any]
"""A parameter group's settings as a step used them: learning rate, betas, weight decay, ..."""


@final
@dataclass(frozen=True, eq=False)
class Micro:
    """One batch that went forward and backward; a step has several where gradients were accumulated.

    ids: the examples, by their index in the data set.
    content: the batch as the loader gave it, as structure and tensors; its digest where only that was kept.
    loss: the number that went backward, as the loop had divided it.
    generators: the state of each random generator just before the forward pass, by its device.
    still: the modules that were in eval mode meanwhile.
    autocast: kind of device and dtype of the mixed precision in which it was computed; None where there was none.
    """

    ids: tuple[int, ...]
    content: Written | str
    loss: float
    generators: Mapping[str, Tensor]
    still: tuple[str, ...] = ()
    autocast: tuple[str, str] | None = None


@final
@dataclass(frozen=True)
class Clip:
    """A call of `torch.nn.utils.clip_grad_norm_`.

    names: the parameters that it was given. limit: the largest norm. kind: which norm, 2 for the Euclidean.
    norm: the norm before, as measured.
    """

    names: tuple[str, ...]
    limit: float
    kind: float
    norm: float


@final
@dataclass(frozen=True, eq=False)
class Step:
    """One step of the optimiser.

    groups: the settings of each parameter group, as used.
    clips: how the gradient was clipped before it.
    norm: the Euclidean norm of the gradient that the optimiser saw, over all its parameters.
    resting: parameters of the optimiser that had no gradient, which it left alone.
    average: d, where a moving average was then updated, `a <- d a + (1 - d) parameters`; None where it was not.
    """

    micros: Sequence[Micro]
    groups: Sequence[Settings]
    clips: Sequence[Clip]
    norm: float
    resting: tuple[str, ...] = ()
    average: float | None = None


@final
@dataclass(frozen=True, eq=False)
class State:
    """Where a training stood before a step.

    values: what it trains. buffers: the model's, running statistics among them.
    slots: what the optimiser keeps of each parameter, such as Adam's moments; empty before its first step.
    average: the moving average of the parameters, where there is one.
    """

    values: Params
    buffers: Params = field(default_factory=dict)
    slots: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    average: Params = field(default_factory=dict)
