"""A step's gradient with its graph, and that gradient's own derivative along cotangents."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import DifferentiationError, first_line
from stagetrace.recording.step import Step
from stagetrace.replay.forward import Point
from stagetrace.replay.step import Scale, Slopes, clipped, slopes, summed
from stagetrace.replay.training import Training
from stagetrace.stages.predicted import Places
from stagetrace.stages.space import Params


@final
@dataclass(frozen=True, eq=False)
class Products:
    """What a batch's gradient gives along cotangents `v`, and the running statistics after it along `u`: one backward
    pass. Cotangents are `[k, *shape]`.

    ids: the batch's examples. weights: float64 `[batch, k]`, `v . d gradient / d w`. tokens: the same token by token,
        `[batch, length, k]`, where the losses were taken apart into those of tokens; places: where these are.
    trained, inherited, statistics: `[k, *shape]`, `v . d gradient / dx + u . d (statistics after) / dx` for x a
        parameter, or a running statistic before the batch.
    """

    ids: Tensor
    weights: Tensor
    trained: Params
    inherited: Params
    statistics: Params
    tokens: Tensor | None = None
    places: Places | None = None


@final
@dataclass(frozen=True, eq=False)
class Graph:
    """The gradient of one batch's loss and the running statistics after it, differentiable in what they came from.

    weights: of the losses, `[batch]`; of token losses `[batch, length]`, whose predicted ones are at `places`.
    """

    ids: Tensor
    weights: Tensor
    trained: Params
    inherited: Params
    statistics: Params
    gradient: Params
    after: Params
    scale: Scale
    places: Places | None

    @staticmethod
    def of(
        training: Training,
        point: Point,
        inherited: Params,
        step: Step,
        place: int,
        weights: Tensor | None = None,
        factors: Sequence[float] | None = None,
        *,
        by_token: bool = False,
    ) -> "Graph":
        """That of the step's batch at `place`, from the buffers as they are; weights and factors: see `slopes`.

        by_token: with a weight for each token's loss.
        """
        micro = step.micros[place]
        # one that rests in this step shapes the others' gradients all the same
        trained = {name: value.detach().requires_grad_() for name, value in point.values.items()}
        moved = {name: value for name, value in trained.items() if name not in step.resting}
        kept = {name: value.detach().requires_grad_() for name, value in inherited.items()}
        statistics = {name: value.detach().requires_grad_() for name, value in training.statistics.items()}
        training.put(statistics)
        like = next(iter(point.values.values()))
        # losses come out in float32 where parameters are narrower
        dtype = torch.promote_types(like.dtype, torch.float32)
        chosen = torch.ones(len(micro.ids)) if weights is None else weights[list(micro.ids)]
        leaf = chosen.to(like.device, dtype)
        factor = None if factors is None else factors[place]
        with torch.enable_grad():
            if by_token:
                losses, places = training.token_losses(trained, kept, micro)
                leaf = leaf.unsqueeze(1).repeat(1, losses.shape[1])
            else:
                losses, places = training.losses(trained, kept, micro), None
            loss, scale = summed(losses, micro, leaf.requires_grad_(), factor)
            found = torch.autograd.grad(loss, list(moved.values()), create_graph=True, materialize_grads=True)
        gradient = dict(zip(moved, found, strict=True))
        ids = torch.tensor(micro.ids)
        return Graph(ids, leaf, trained, kept, statistics, gradient, training.statistics, scale, places)

    def products(self, cotangents: Params, after: Params) -> Products:
        """See `Products`.

        Raises:
            DifferentiationError: the gradient has no derivative.
        """
        outputs = [(self.gradient[name], cotangents[name]) for name in self.gradient]
        outputs += [(self.after[name], after[name]) for name in self.after]
        outputs = [(output, cotangent) for output, cotangent in outputs if output.requires_grad]
        groups = self.trained, self.inherited, self.statistics
        inputs = [self.weights, *(value for group in groups for value in group.values())]
        columns = len(next(iter(cotangents.values())))
        found = list[Sequence[Tensor]]()
        for column in range(columns):
            try:
                found.append(
                    torch.autograd.grad(
                        [output for output, _ in outputs],
                        inputs,
                        [cotangent[column] for _, cotangent in outputs],
                        retain_graph=column < columns - 1,
                        materialize_grads=True,
                    )
                )
            except (RuntimeError, NotImplementedError) as cause:
                raise DifferentiationError(
                    f"the gradient of a recorded step has no derivative ({first_line(cause)}); replace the operation "
                    "that is named"
                ) from cause
        # a single column is only seen as one: its memory is its own
        stacked = (
            found[0][place].unsqueeze(0) if columns == 1 else torch.stack([each[place] for each in found])
            for place in range(len(inputs))
        )
        weights = next(stacked).double().cpu().movedim(0, -1)
        trained, inherited, statistics = ({name: next(stacked) for name in group} for group in groups)
        if self.places is None:
            return Products(self.ids, weights, trained, inherited, statistics)
        return Products(self.ids, weights.sum(dim=1), trained, inherited, statistics, weights, self.places)


@final
class StepGraphs:
    """The graphs of a step's batches. Of several one is held at a time, and the sum of gradients is computed before.

    weights, factors: see `slopes`. by_token: with a weight for each token's loss.
    """

    def __init__(
        self,
        training: Training,
        point: Point,
        inherited: Params,
        step: Step,
        weights: Tensor | None = None,
        factors: Sequence[float] | None = None,
        *,
        by_token: bool = False,
    ) -> None:
        self._training, self._point, self._inherited, self._step = training, point, inherited, step
        self._weights, self._factors, self._by_token = weights, factors, by_token
        self._only: Graph | None = None
        self._buffers: tuple[Params, ...] = ()

    def gradient(self) -> Slopes:
        """The step's gradient; moves the running statistics as the step did."""
        training, point, step = self._training, self._point, self._step
        training.put(point.buffers)
        if len(step.micros) > 1:
            found = slopes(training, point.values, self._inherited, step, self._weights, self._factors)
            self._buffers = found.buffers
            return found
        self._only = self._graph(0)
        raw = {name: gradient.detach() for name, gradient in self._only.gradient.items()}
        return clipped(raw, step.clips, (self._only.scale,))

    def products(self, cotangents: Params, after: Params) -> Iterator[Products]:
        """Those of each batch, the last first: what one leaves of the statistics is where the next begins."""
        if self._only is not None:
            yield self._only.products(cotangents, after)
            return
        for place in reversed(range(len(self._step.micros))):
            self._training.put(self._buffers[place])
            found = self._graph(place).products(cotangents, after)
            after = found.statistics
            yield found

    def _graph(self, place: int) -> Graph:
        given = self._training, self._point, self._inherited, self._step, place, self._weights, self._factors
        return Graph.of(*given, by_token=self._by_token)
