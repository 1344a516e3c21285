"""A model as a function of its parameters: during a call other values take the places of its parameters."""

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from stagetrace.stages.differentiable_norms import statistics_places
from stagetrace.stages.kernels import differentiable_kernels, has_fused_recurrence_on_cpu, is_recurrent
from stagetrace.stages.precision import Precision, products_in, widened
from stagetrace.stages.recomputing import recomputing_within
from stagetrace.stages.shards import gathering


class _Place(NamedTuple):
    """Where a module holds a tensor, and the one name by which that tensor is known."""

    holder: dict[str, Any]
    key: str
    name: str


@final
class Evaluation:
    """A model as a function of named parameters, and of running statistics; the ones not given keep their values, as
    constants.

    A parameter is swapped by identity, in each place that holds it: tied weights, and a module that is reachable under
    two names, stay one. (`torch.func.functional_call` swaps by name, and leaves a swapped tensor behind where a module
    has two.) The model is the library's own copy, and is as it was after each call.

    precision: of its matrix products, see `precision.py`; None leaves that of the parameters.
    shapes: where parameters are this process's pieces of those, the whole ones' shapes, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        precision: Precision | None = None,
        shapes: Mapping[str, torch.Size] | None = None,
    ) -> None:
        self.model, self._shapes = model, None if shapes is None else dict(shapes)
        self.precision: Precision | None = precision
        self.recomputes = False
        """Whether a block has been seen whose activations are computed anew."""
        self._kernels = {"recurrent": is_recurrent(model), "fused_on_cpu": has_fused_recurrence_on_cpu(model)}
        self._constants = {name: plain_tensor(parameter) for name, parameter in model.named_parameters()}
        self._names = known = {id(parameter): name for name, parameter in model.named_parameters()}
        self._places = [
            _Place(module._parameters, key, known[id(parameter)])  # pyright: ignore[reportPrivateUsage]
            for module in model.modules()
            for key, parameter in module._parameters.items()  # pyright: ignore[reportPrivateUsage]
            if parameter is not None
        ]
        self._statistics = [
            _Place(module._buffers, key, name)  # pyright: ignore[reportPrivateUsage]
            for name, module, key in statistics_places(model)
        ]

    def __call__(self, params: Mapping[str, Tensor], function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """`function(model, *arguments)` at these values of the parameters."""
        with self._placed({**self._constants, **params}):
            found = function(self.model, *arguments)
        return found if self.precision is None else widened(found)

    @cached_property
    def exact(self) -> "Evaluation":
        """The same model with its products in the precision of the parameters."""
        return self if self.precision is None else Evaluation(self.model, shapes=self._shapes)

    @contextmanager
    def _placed(self, values: Mapping[str, Tensor]) -> Generator[None]:
        """All that a derivative at these values depends on; blocks that are computed anew find it again."""
        with ExitStack() as stack:
            stack.enter_context(self._at(values))
            stack.enter_context(differentiable_kernels(**self._kernels))
            if self.precision is not None:
                stack.enter_context(products_in(self.precision, next(iter(self._constants.values())).device))
            stack.enter_context(recomputing_within(partial(self._placed, values), self._drops))
            yield

    def _drops(self) -> None:
        self.recomputes = True

    @property
    def shapes(self) -> Mapping[str, torch.Size] | None:
        """The whole shapes of parameters that lie in pieces on several processes; None where they are whole."""
        return self._shapes

    @contextmanager
    def _at(self, values: Mapping[str, Tensor]) -> Generator[None]:
        if self._shapes is not None:
            with gathering(self.model, self._names, values, self._shapes):
                yield
            return
        places = [*self._places, *(place for place in self._statistics if place.name in values)]
        own = [holder[key] for holder, key, _ in places]
        for holder, key, name in places:
            holder[key] = values[name]
        try:
            yield
        finally:
            for (holder, key, _), parameter in zip(places, own, strict=True):
                holder[key] = parameter


def plain_tensor(parameter: Tensor) -> Tensor:
    """The values without a history, sharing memory; a copy of what was made under `torch.inference_mode`, which no
    derivative may touch.
    """
    if not parameter.is_inference():
        return parameter.detach()
    with torch.inference_mode(False):
        return parameter.clone().detach()
