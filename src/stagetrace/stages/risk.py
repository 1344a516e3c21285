"""Per-example losses of a data set as a pure function of a stage's parameters.

Everything the method needs (gradients, curvature products, scores) is a derivative of this one function, for a
stage's own examples and for a query alike.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import DataError, StagetraceError
from stagetrace.objectives.batches import dtype_of, in_short
from stagetrace.objectives.objective import Checks, Objective, by_token
from stagetrace.stages.data import Batch, Examples
from stagetrace.stages.device import UnderWay, one_ahead, send, to_device
from stagetrace.stages.evaluation import Evaluation
from stagetrace.stages.naming import failed, naming
from stagetrace.stages.precision import PRECISIONS
from stagetrace.stages.sizes import read_by_size
from stagetrace.stages.space import ParameterSpace, Params

COUNTED = 16
"""Examples of which predictions are counted."""


@final
@dataclass(frozen=True, eq=False)
class Risk:
    """The losses of some examples at a stage's parameters, those it trained and those it inherited.

    where: how messages name it, e.g. `stage 'pretrain'` or `the query`.
    weights: what each example's loss is multiplied by, `[n]`; None for 1.
    """

    where: str
    evaluation: Evaluation
    objective: Objective
    examples: Examples
    trained: ParameterSpace
    inherited: ParameterSpace
    trained_values: Params
    inherited_values: Params
    weights: Tensor | None = None

    def at(self, trained: Params) -> "Risk":
        """The same losses at other values of the trained parameters."""
        return replace(self, trained_values=trained)

    @cached_property
    def exact(self) -> "Risk":
        """The same losses with matrix products in the precision of the parameters: what a check compares with."""
        return self if self.evaluation.precision is None else replace(self, evaluation=self.evaluation.exact)

    @cached_property
    def unweighted(self) -> "Risk":
        """The same losses, each as the objective gives it: what checks look at, which an example of weight 0 would
        pass whatever its loss is.
        """
        return self if self.weights is None else replace(self, weights=None)

    def weights_of(self, batch: Batch, like: Tensor) -> Tensor | None:
        """What the losses of a batch are multiplied by, `[batch]`, of the type and on the device of `like`."""
        return None if self.weights is None else self.weights[list(batch.indices)].to(like.device, like.dtype)

    @property
    def rounding(self) -> float:
        """The relative rounding of what is computed, as far as it was chosen: of the parameters, or of the products."""
        chosen = self.evaluation.precision
        return torch.finfo(self.trained.dtype if chosen is None else PRECISIONS[chosen]).eps

    def beside(self, values: Params) -> "Risk":
        """The same losses as a function of further values: running statistics, after the inherited parameters."""
        given = {**self.inherited_values, **values}
        space = ParameterSpace.of(given, like=next(iter(self.trained_values.values())))
        return replace(self, inherited=space, inherited_values=given)

    def outputs(self, trained: Params, inherited: Params, batch: Batch) -> Tensor:
        """The objective's outputs `[batch, ...]`."""
        with self._naming(batch):
            return self.evaluation({**inherited, **trained}, self.objective.outputs, batch.content)

    def reduce(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The losses `[batch]` of given outputs, each times its example's weight.

        Raises:
            DataError: the losses were reduced, or are not one per example.
        """
        with self._naming(batch):
            losses = self.objective.losses(outputs, batch.content)
        if not isinstance(losses, Tensor) or losses.shape != (len(batch),):
            raise DataError(f"{self.where}: {self._wrong_shape(losses, batch)}")
        if not losses.is_floating_point():
            raise DataError(
                f"{self.where}: the losses are {dtype_of(losses)}, and must be real floating-point numbers that depend "
                "on the parameters smoothly; return the loss that was trained, not how often the model is right"
            )
        weights = self.weights_of(batch, losses)
        return losses if weights is None else losses * weights

    def losses(self, trained: Params, inherited: Params, batch: Batch) -> Tensor:
        """One loss per example `[batch]`."""
        return self.reduce(self.outputs(trained, inherited, batch), batch)

    def token_losses(self, trained: Params, inherited: Params, batch: Batch) -> Tensor:
        """The losses token by token, `[batch, length]`, of an objective that has them, each times its example's weight;
        they sum to `losses`.

        Raises:
            DescriptionError: the objective has none.
            DataError: they are not one for each example and position.
        """
        outputs = self.outputs(trained, inherited, batch)
        with self._naming(batch):
            losses = by_token(self.objective).token_losses(outputs, batch.content)
        if not isinstance(losses, Tensor) or losses.ndim != 2 or len(losses) != len(batch):
            raise DataError(
                f"{self.where}: token_losses must be [{len(batch)}, length] for {len(batch)} examples, got "
                f"{in_short(losses)}"
            )
        weights = self.weights_of(batch, losses)
        return losses if weights is None else losses * weights.unsqueeze(1)

    def read(self, plan: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """The batches of a plan, on the model's device, floating-point tensors in its dtype.

        Raises:
            DataError: a label is not for this loss, or the loss cannot be evaluated at all; the example is named.
        """
        yield from self._placed(self.examples.read(plan), lambda batch: self._check(batch, self._shape))

    def read_by_size(self, indices: Sequence[int] | None = None, size: int | None = None) -> Iterator[Batch]:
        """The examples of `indices` (all), those of like size in one batch: see `sizes.py`.

        Raises:
            DataError: as `read`.
        """
        yield from self._placed(
            read_by_size(self.examples, indices, size), lambda batch: self._check(batch, self._shape)
        )

    def read_inputs(self, plan: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """The same where no loss is asked for: labels may be another model's."""
        yield from self._placed(self.examples.read(plan), lambda _: None)

    def _placed(self, batches: Iterator[Batch], check: Callable[[Batch], None]) -> Iterator[Batch]:
        """The batches where the model is. On its way to a GPU one is ahead of the one that is computed with."""
        device = self.trained.device
        if device.type != "cuda":
            for batch in batches:
                check(batch)
                yield self._on_device(batch)
            return
        stream = torch.cuda.Stream(device)

        def begin(batch: Batch) -> tuple[Batch, UnderWay]:
            check(batch)
            return batch, send(batch.content, self.trained.dtype, device, self.where, stream)

        for batch, under_way in one_ahead(begin, batches):
            yield Batch(batch.indices, under_way.received())

    def _on_device(self, batch: Batch) -> Batch:
        return Batch(batch.indices, to_device(batch.content, self.trained.dtype, self.trained.device, self.where))

    def _check(self, batch: Batch, shape: Sequence[int]) -> None:
        if isinstance(self.objective, Checks):
            with self._naming(batch):
                self.objective.check(batch.content, shape)

    @cached_property
    def _shape(self) -> tuple[int, ...]:
        """The shape of an example's outputs. A model or loss that does not take the data at all says so here."""
        (batch,) = self.examples.read(self.examples.batch_indices(size=2)[:1])
        placed, outputs = self._on_device(batch), None
        try:
            with torch.no_grad():
                outputs = self.outputs(self.trained_values, self.inherited_values, placed)
                shape = tuple(outputs.shape[1:]) if isinstance(outputs, Tensor) else ()
                self._check(batch, shape)
                with self._naming(batch):
                    self.objective.losses(outputs, placed.content)
        except StagetraceError:
            raise
        except Exception as cause:
            raise failed(self.where, self.objective, batch, cause) from cause
        return shape

    @cached_property
    def predictions(self) -> int:
        """How many predictions an example holds: the mean over a few, spread through the data set; 1 unless it is text.

        Of outputs `[batch, length, classes]` that is the length.
        """
        if len(self._shape) < 2:
            return 1
        total, counts = len(self.examples), list[int]()
        for single in self.read([[position * total // COUNTED] for position in range(min(COUNTED, total))]):
            with torch.no_grad():
                outputs = self.outputs(self.trained_values, self.inherited_values, single)
            counts.append(math.prod(outputs.shape[1:-1]))
        return max(1, round(sum(counts) / len(counts)))

    def _naming(self, batch: Batch) -> AbstractContextManager[None]:
        return naming(self.where, batch, self._first_out_of_range)

    def _first_out_of_range(self, batch: Batch) -> int | None:
        for position, index in enumerate(batch.indices):
            (single,) = self.examples.read([[index]])
            content, values = self._on_device(single).content, {**self.inherited_values, **self.trained_values}
            try:
                with torch.no_grad():
                    outputs = self.evaluation(values, self.objective.outputs, content)
                    self.objective.losses(outputs, content)
            except IndexError:
                return position
            except Exception:
                continue
        return None

    def _wrong_shape(self, losses: object, batch: Batch) -> str:
        if not isinstance(losses, Tensor):
            remedy = (
                "return the losses alone" if isinstance(losses, (tuple, list, Mapping)) else "no .item(), no float()"
            )
            return f"the loss must return a tensor of one loss per example, got {in_short(losses)}; {remedy}"
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
