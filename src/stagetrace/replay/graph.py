"""A step's gradient with its graph, and that gradient's own derivative along cotangents."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import DifferentiationError, first_line
from stagetrace.recording.step import Step
from stagetrace.replay.forward import Point
from stagetrace.replay.step import Scale, Slopes, clipped, slopes, weighted_loss
from stagetrace.replay.training import Training
from stagetrace.stages.space import Params


@final
@dataclass(frozen=True, eq=False)
class Products:
    """What a batch's gradient gives along cotangents `v` `[k, *shape]`, by its own backward pass.

    ids: the batch's examples. weights: float64 `[batch, k]`, `v . d gradient / d w`.
    trained, inherited: `[k, *shape]`, `v . d gradient / d (parameter)`.
    """

    ids: Tensor
    weights: Tensor
    trained: Params
    inherited: Params


@final
@dataclass(frozen=True, eq=False)
class Graph:
    """The gradient of one batch's loss, differentiable in what it was computed from."""

    ids: Tensor
    weights: Tensor
    trained: Params
    inherited: Params
    gradient: Params
    scale: Scale

    @staticmethod
    def of(training: Training, point: Point, inherited: Params, step: Step, place: int) -> "Graph":
        """That of the step's batch at `place`, with a weight of 1 on each example."""
        micro = step.micros[place]
        trained = {name: v.detach().requires_grad_() for name, v in point.values.items() if name not in step.resting}
        kept = {name: value.detach().requires_grad_() for name, value in inherited.items()}
        like = next(iter(point.values.values()))
        # losses come out in float32 where parameters are narrower
        dtype = torch.promote_types(like.dtype, torch.float32)
        weights = torch.ones(len(micro.ids), dtype=dtype, device=like.device, requires_grad=True)
        with torch.enable_grad():
            loss, scale = weighted_loss(training, {**point.values, **trained}, kept, micro, weights)
            found = torch.autograd.grad(loss, list(trained.values()), create_graph=True, materialize_grads=True)
        gradient = dict(zip(trained, found, strict=True))
        return Graph(torch.tensor(micro.ids), weights, trained, kept, gradient, scale)

    def products(self, cotangents: Params) -> Products:
        """See `Products`.

        Raises:
            DifferentiationError: the gradient has no derivative.
        """
        through = [name for name, gradient in self.gradient.items() if gradient.requires_grad]
        inputs = [self.weights, *self.trained.values(), *self.inherited.values()]
        columns = len(next(iter(cotangents.values())))
        found = list[Sequence[Tensor]]()
        for column in range(columns):
            try:
                found.append(
                    torch.autograd.grad(
                        [self.gradient[name] for name in through],
                        inputs,
                        [cotangents[name][column] for name in through],
                        retain_graph=column < columns - 1,
                        materialize_grads=True,
                    )
                )
            except (RuntimeError, NotImplementedError) as cause:
                raise DifferentiationError(
                    f"the gradient of a recorded step has no derivative ({first_line(cause)}); replace the operation "
                    "that is named"
                ) from cause
        weights, *rest = (torch.stack([each[place] for each in found]) for place in range(len(inputs)))
        trained = dict(zip(self.trained, rest[: len(self.trained)], strict=True))
        inherited = dict(zip(self.inherited, rest[len(self.trained) :], strict=True))
        return Products(self.ids, weights.double().cpu().mT, trained, inherited)


@final
class StepGraphs:
    """The graphs of a step's batches. Of several one is held at a time, and the sum of gradients is computed before."""

    def __init__(self, training: Training, point: Point, inherited: Params, step: Step) -> None:
        self._training, self._point, self._inherited, self._step = training, point, inherited, step
        self._only: Graph | None = None

    def gradient(self) -> Slopes:
        """The step's gradient; moves the running statistics as the step did."""
        training, point, step = self._training, self._point, self._step
        training.put(point.buffers)
        if len(step.micros) > 1:
            return slopes(training, point.values, self._inherited, step)
        self._only = Graph.of(training, point, self._inherited, step, 0)
        raw = {name: gradient.detach() for name, gradient in self._only.gradient.items()}
        return clipped(raw, step.clips, (self._only.scale,))

    def products(self, cotangents: Params) -> Iterator[Products]:
        """Those of each batch."""
        if self._only is not None:
            yield self._only.products(cotangents)
            return
        self._training.put(self._point.buffers)
        for place in range(len(self._step.micros)):
            yield Graph.of(self._training, self._point, self._inherited, self._step, place).products(cotangents)
