"""Per-example losses of a data set as a pure function of a stage's parameters.

Everything the method needs (gradients, curvature products, scores) is a derivative of this one function, for a
stage's own examples and for a query alike.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from stagetrace.errors import DataError
from stagetrace.objectives.objective import Objective
from stagetrace.stages.data import Batch, Examples, place
from stagetrace.stages.kernels import differentiable_kernels, has_fused_recurrence_on_cpu, is_recurrent
from stagetrace.stages.space import ParameterSpace, Params


class _Caller(nn.Module):
    """Calls a function of the model, so that parameters are swapped whichever of its methods the function uses."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        return function(self.model, *arguments)


@final
class Evaluation:
    """A model as a function of named parameters; the ones not given keep their values, as constants."""

    def __init__(self, model: nn.Module) -> None:
        self._caller = _Caller(model)
        self._kernels = {"recurrent": is_recurrent(model), "fused_on_cpu": has_fused_recurrence_on_cpu(model)}
        self._constants = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def __call__(self, params: Mapping[str, Tensor], function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        values = {f"model.{name}": value for name, value in {**self._constants, **params}.items()}
        with differentiable_kernels(**self._kernels):
            return functional_call(self._caller, values, (function, *arguments))


@final
@dataclass(frozen=True, eq=False)
class Risk:
    """The losses of some examples at a stage's parameters: `own` ones it trained and `inherited` ones it kept.

    where: how messages name it, e.g. `stage 'pretrain'` or `the query`.
    """

    where: str
    evaluation: Evaluation
    objective: Objective
    examples: Examples
    own: ParameterSpace
    inherited: ParameterSpace
    own_values: Params
    inherited_values: Params

    def outputs(self, own: Params, inherited: Params, batch: Batch) -> Tensor:
        """The objective's outputs `[batch, ...]`."""
        return self.evaluation({**inherited, **own}, self.objective.outputs, batch.content)

    def reduce(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The losses `[batch]` of given outputs.

        Raises:
            DataError: the losses were reduced, or are not one per example.
        """
        losses = self.objective.losses(outputs, batch.content)
        if not isinstance(losses, Tensor) or losses.shape != (len(batch),):
            raise DataError(f"{self.where}: {self._wrong_shape(losses, batch)}")
        return losses

    def losses(self, own: Params, inherited: Params, batch: Batch) -> Tensor:
        """One loss per example `[batch]`."""
        return self.reduce(self.outputs(own, inherited, batch), batch)

    def read(self, plan: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """The batches of a plan, on the model's device, floating-point tensors in its dtype."""
        for batch in self.examples.read(plan):
            yield Batch(batch.indices, place(batch.content, self.own.dtype, self.own.device, self.where))

    def _wrong_shape(self, losses: object, batch: Batch) -> str:
        if not isinstance(losses, Tensor):
            return f"the loss must return a tensor of one loss per example, got {type(losses).__name__}"
        if losses.ndim == 0:
            return (
                f"the loss was reduced to one number for {len(batch)} examples; return one loss per example "
                "(reduction='none'), the library takes the mean"
            )
        return (
            f"the loss has shape {list(losses.shape)} for a batch of {len(batch)} examples; it must be [{len(batch)}]"
        )


def check_finite(values: Tensor, indices: Sequence[int], where: str, what: str = "the loss") -> None:
    """Refuse a NaN or infinite loss (or score), naming the example: `values[i]` is that of example `indices[i]`.

    Raises:
        DataError: with the index of the first such example.
    """
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        position = int((~finite).nonzero()[0, 0])
        raise DataError(
            f"{where}: {what} of example {indices[position]} is {float(values[position])}; "
            "remove the example or fix its data, then run again"
        )
