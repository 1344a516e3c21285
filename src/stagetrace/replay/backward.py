"""Backwards: the adjoint of a recorded training, from its end to its start, one double backward a step.

With theta the parameters, s the optimiser's slots, w the examples' weights, u kept parameters and b the running
statistics of batch norms, a step is

    g = gradient in theta of  sum over batches  factor sum_i w_i loss_i(theta, u, b),      c = clip(g)
    theta', s' = update(theta, s, c),      b' = moved(b, theta, u)

and with a bar for dq/d(...), q the query loss, the step runs backwards as

    theta_bar, s_bar, c_bar = the update's adjoint of theta'_bar, s'_bar
    g_bar = the clip's adjoint of c_bar
    x_bar += (dg / dx)' g_bar + (db' / dx)' b'_bar,    x = theta, w, u,    and the same sum is b_bar.

One backward pass through the gradient and the new statistics gives all four. Of several batches in a step, each hands b
on to the next, so the last is run first. A moving average `a' = d a + (1 - d) theta'`, where the training ended in one,
goes before the step: `theta'_bar += (1 - d) a'_bar`, `a_bar = d a'_bar`. It is the chain rule and nothing else: no
minimum is assumed.
(Maclaurin, Duvenaud & Adams 2015 for one stage of SGD with momentum.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import some_names
from stagetrace.recording.optimizers import Adjoint, Rule, rule_of
from stagetrace.recording.recorded import Recorded
from stagetrace.recording.step import State, Step
from stagetrace.replay.agreement import TOLERANCES, Agreement
from stagetrace.replay.course import Factors
from stagetrace.replay.entries import pulled_back
from stagetrace.replay.forward import Point, stepped
from stagetrace.replay.graph import StepGraphs
from stagetrace.replay.schedule import ahead
from stagetrace.replay.statistics import notes, taken_over
from stagetrace.replay.step import slopes, through_clips
from stagetrace.replay.token_slopes import TokenSums
from stagetrace.replay.training import Training
from stagetrace.replay.weighted import Weighted
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.gradient import Gradient
from stagetrace.stages.predicted import Tokens

MEMORY = 2 * 2**30
"""Bytes for the states of a block, where nothing else is asked for."""

Ended = Callable[[Point], None]
"""Is told where a block's steps ended."""


@final
@dataclass(frozen=True, eq=False)
class Sensitivities:
    """What a recorded training answers.

    trained: `[trained.size, k]`, dq/d(the parameters that it started from). inherited: `[inherited.size, k]`, what the
    steps add to dq/d(inherited parameters). statistics: `[statistics.size, k]`, dq/d(the running statistics that the
    stage before left), 0 where it started from others. weights: float64 `[n, k]`, dq/d(the weight of each example's
    loss), at the weights that it was trained with. tokens: the same of each token's loss, where that was asked for.
    """

    trained: Tensor
    inherited: Tensor
    statistics: Tensor
    weights: Tensor
    agreement: Agreement
    notes: tuple[str, ...]
    tokens: Tokens | None = None


@final
class Reverse:
    """A recorded training run backwards, block by block; each block is replayed first, and must come out as recorded.

    bound: the stage as it was left, its parameters those at the end of the recording.
    memory: bytes for the states of a block. Where they do not fit, some are held and the steps between are replayed
        once more.
    weighted: the recorded training repeated with weights on its examples; it is differentiated at these, and must come
        out as it did.
    by_token: take the losses apart into those of tokens.
    """

    def __init__(
        self,
        bound: BoundStage,
        recorded: Recorded,
        gradient: Gradient,
        memory: int = MEMORY,
        weighted: Weighted | None = None,
        *,
        by_token: bool = False,
    ) -> None:
        self._bound, self._recorded, self._memory, self._weighted = bound, recorded, memory, weighted
        self._training = Training(bound)
        self._rule: Rule = rule_of(recorded.optimizer, bound.stage.where)
        self.agreement = Agreement(recorded, bound.stage.where, TOLERANCES[bound.trained.dtype])
        columns = gradient.trained.shape[1]
        values = bound.trained.unflatten_columns(gradient.trained)
        nothing = {name: torch.zeros_like(value) for name, value in values.items()}
        # the query sees the parameters, or their average
        ends, self._average = (nothing, values) if recorded.averaged else (values, dict[str, Tensor]())
        self._adjoints = {
            name: Adjoint(value.clone(memory_format=torch.contiguous_format)) for name, value in ends.items()
        }
        self._cotangents = {name: torch.empty_like(adjoint.value) for name, adjoint in self._adjoints.items()}
        self._statistics = bound.statistics.unflatten_columns(gradient.statistics)
        self._inherited = {
            name: torch.zeros(columns, *value.shape, dtype=value.dtype, device=value.device)
            for name, value in bound.inherited_values.items()
        }
        self._began = State({})
        self._after: dict[int, State] = {}  # where the block that was run before began
        self._slopes = torch.zeros(len(bound.stage.examples), columns, dtype=torch.float64)
        self._tokens = TokenSums(columns) if by_token else None

    def block(self, block: range) -> None:
        """Run one block backwards.

        Raises:
            DataError, ResultsError: it is not what was recorded.
            DifferentiationError: the gradient of a step has no derivative.
        """
        source = self._recorded if self._weighted is None else self._weighted
        start = source.state(block.start)
        after = {block.stop: source.state(block.stop)} if block.stop not in self._after else self._after
        self._after, self._began = {block.start: start}, start
        point = Point.of(start, self._bound.trained_values)

        def ended(found: Point) -> None:
            self.agreement.check_end(block, start, after.pop(block.stop), found)  # and is let go

        room = max(2, self._memory // point.size)
        self._stretch(source.read(block), block.start, point, room, ended)

    def _stretch(self, steps: Sequence[Step], first: int, start: Point, room: int, ended: Ended) -> None:
        """Run consecutive steps backwards, given the point before the first; holds up to `room` points at a time.

        first: the number of the first step. ended: is told the point after the last step.
        """
        held, end = [(0, start)], len(steps)
        while held:
            place, point = held[-1]
            if end - place == 1:
                self._backwards(first + place, steps[place], point, ended if end == len(steps) else None)
                held.pop()
                end = place
                continue
            later = place + ahead(end - place, room - len(held))
            for number in range(place, later):
                point = self._forwards(first + number, steps[number], point)
            held.append((later, point))

    def result(self) -> Sensitivities:
        """What has come out, once every block was run."""
        bound, began = self._bound, self._began
        values = {name: each.value for name, each in self._adjoints.items()}
        apart = list[str]()
        for name, adjoint in self._average.items():  # what began as a copy of the parameters moves with them
            if torch.equal(began.average[name], began.values[name]):
                values[name] = values[name] + adjoint
            else:
                apart.append(name)
        trained = bound.trained.flatten_columns(values)
        inherited, statistics = (
            space.flatten_columns(found) if space.names else space.zeros(trained.shape[1])
            for space, found in ((bound.inherited, self._inherited), (bound.statistics, self._statistics))
        )
        statistics = statistics * bound.statistics.mask(taken_over(bound, began.buffers)).unsqueeze(1)
        said = [*self.agreement.notes, *notes(bound, began.buffers, self._training.mixed)]
        if self._recorded.averaged:
            said.append("the stage ended at the moving average of the parameters, which is followed")
        if apart:
            said.append(f"the average of {some_names(apart, 3)} began at other values than training did: a constant")
        tokens = None if self._tokens is None else self._tokens.result()
        return Sensitivities(trained, inherited, statistics, self._slopes, self.agreement, tuple(said), tokens)

    def _forwards(self, number: int, step: Step, point: Point) -> Point:
        self._training.put(point.buffers)
        found = slopes(self._training, point.values, self._bound.inherited_values, step, *self._weights(number))
        self.agreement.check_step(number, step, found, point.values)
        return stepped(self._recorded, point, step, found.clipped, self._training.buffers)

    def _backwards(self, number: int, step: Step, point: Point, ended: Ended | None) -> None:
        """One step backwards. ended: is told the point after it, which was not computed before."""
        given = self._training, point, self._bound.inherited_values, step
        graphs = StepGraphs(*given, *self._weights(number), by_token=self._tokens is not None)
        found = graphs.gradient()
        if ended is not None:
            self.agreement.check_step(number, step, found, point.values)
            ended(stepped(self._recorded, point, step, found.clipped, self._training.buffers))
        if step.average is not None:
            self._through_average(step.average)
        cotangents = {name: self._cotangents[name] for name in point.values if name not in step.resting}
        for group, names in zip(step.groups, self._recorded.groups, strict=True):
            states = {name: point.parameter(name) for name in names if name in cotangents}
            pulled_back(self._rule, states, found.clipped, group, self._adjoints, cotangents)
        through_clips(cotangents, found.raw, step.clips)
        for products in graphs.products(cotangents, self._statistics):
            for name, product in products.trained.items():
                self._adjoints[name].value.add_(product)
            for name, product in products.inherited.items():
                self._inherited[name] += product
            self._statistics = products.statistics
            self._slopes.index_add_(0, products.ids, products.weights)
            if self._tokens is not None and products.tokens is not None and products.places is not None:
                self._tokens.add(products.ids, products.places, products.tokens)

    def _weights(self, number: int) -> tuple[Tensor | None, Factors | None]:
        """The examples' weights, and a step's factors; None where it is differentiated as it was recorded."""
        weighted = self._weighted
        return (None, None) if weighted is None else (weighted.weights, weighted.course.factors[number])

    def _through_average(self, d: float) -> None:
        """`a' = d a + (1 - d) theta'` backwards: `theta'_bar += (1 - d) a'_bar`, `a_bar = d a'_bar`."""
        for name, adjoint in self._average.items():
            self._adjoints[name].value.add_((1 - d) * adjoint)
            self._average[name] = d * adjoint
