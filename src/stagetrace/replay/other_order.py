"""A recorded training with its examples in another order: as many in each batch, the masks drawn anew."""

import random
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch

from stagetrace.errors import refuse
from stagetrace.recording.content import digest, read, written
from stagetrace.recording.step import Micro, Step
from stagetrace.replay.course import Course, Factors
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.data import Batch, Examples

_ALIKE = 1e-4
"""How far factors may be apart, relative to one another, and count as equal: they are read off losses of any dtype."""

_SEEDS = 2**62


@final
class OtherOrder:
    """The steps of a recorded training with other batches: learning rates, clipping and sizes stay.

    Every pass over the data set is a new permutation of all examples, cut into batches as large as the recorded ones,
    in their order; what does not fill the next one is left out of that pass. The batches are made by the stage's own
    data set and collation. What these and the forward passes draw at random follows from the seed alone, whatever the
    weights are.

    Raises:
        DescriptionError: the losses' divisors depend on which examples are in a batch (a number of tokens), so that
            those of other batches are not known; or the stage's data set and collation do not make the batches that
            were trained on.
    """

    def __init__(self, bound: BoundStage, course: Course) -> None:
        self._course, self._examples, self._where = course, bound.stage.examples, bound.stage.where
        self._check_divisors()
        self._check_batch(course.recorded.read(range(1))[0].micros[0])

    def steps(self, seed: int) -> Iterator[tuple[Step, Factors]]:
        """The steps in the order of a seed."""
        drawn = self.drawn(seed)
        for block in self._course.recorded.blocks:
            yield from zip(drawn.read(block), self._course.factors[block.start : block.stop], strict=True)

    def drawn(self, seed: int) -> "Drawn":
        """The order of a seed, to be read block by block."""
        generator = torch.Generator().manual_seed(seed)
        order = iter(_order(self._course.ids, len(self._examples), generator))
        return Drawn(self, [[_Plan.of(next(order), generator) for _ in step] for step in self._course.ids])

    def read(self, block: range, plans: Sequence[Sequence["_Plan"]]) -> Iterator[Step]:
        """The steps of a block with other batches. plans: of each batch of every step."""
        for number, step in zip(block, self._course.recorded.read(block), strict=True):
            yield replace(step, micros=list(map(self._micro, step.micros, plans[number])))

    def _micro(self, micro: Micro, plan: "_Plan") -> Micro:
        content = written(self._read(plan.ids, plan.reading).content)
        states = {device: torch.Generator(device).manual_seed(plan.masks).get_state() for device in micro.generators}
        return replace(micro, ids=tuple(plan.ids), content=content, loss=float("nan"), generators=states)

    def _read(self, ids: Sequence[int], seed: int) -> Batch:
        with _drawn_by(seed):
            return _only(self._examples, ids)

    def _check_divisors(self) -> None:
        """Refuse factors that do not follow from the numbers of examples and batches."""
        course = self._course
        sizes = [[len(batch) for batch in step] for step in course.ids]
        rules: list[Callable[[Sequence[int], int], int]] = [
            lambda step, size: size,
            lambda step, size: sum(step),
            lambda step, size: size * len(step),
        ]
        for rule in rules:
            scaled = [
                factor * rule(step, size)
                for step, factors in zip(sizes, course.factors, strict=True)
                for size, factor in zip(step, factors, strict=True)
            ]
            if max(scaled) - min(scaled) <= _ALIKE * max(map(abs, scaled)):
                return
        refuse(
            f"{self._where}: its losses were divided by what depends on the examples in a batch (a number of tokens?), "
            "so in other batches by what is not known; use order='recorded', or give your own training: "
            "def fit(weights, previous, seed): ..."
        )

    def _check_batch(self, micro: Micro) -> None:
        """Refuse a data set and collation that make another batch of the same examples, unless they draw at random."""
        recorded = micro.content if isinstance(micro.content, str) else digest(read(*micro.content))
        found = [digest(self._read(micro.ids, seed).content) for seed in (0, 1)]
        if recorded in found or found[0] != found[1]:
            return
        refuse(
            f"{self._where}: its data set and collate= do not make the batches that were trained on (the first one "
            "differs), so an order other than the recorded one cannot be trained; give Stage the data set and "
            "collation of the loader that trained"
        )


@final
@dataclass(frozen=True)
class _Plan:
    """One batch: its examples, and the seeds of what reading them and the forward pass draw."""

    ids: Sequence[int]
    reading: int
    masks: int

    @staticmethod
    def of(ids: Sequence[int], generator: torch.Generator) -> "_Plan":
        reading, masks = (int(seed) for seed in torch.randint(_SEEDS, (2,), generator=generator))
        return _Plan(ids, reading, masks)


@final
@dataclass(frozen=True, eq=False)
class Drawn:
    """The steps of a recorded training in another order, which is drawn; each block is made as it is read."""

    order: OtherOrder
    plans: Sequence[Sequence[_Plan]]

    def read(self, block: range) -> Iterator[Step]:
        """The steps of a block, in order."""
        return self.order.read(block, self.plans)


def _order(ids: Sequence[Sequence[Sequence[int]]], examples: int, generator: torch.Generator) -> Iterator[list[int]]:
    """The examples of each batch in turn: as many as it had, from one permutation after the other."""
    left = list[int]()
    for batch in (batch for step in ids for batch in step):
        if len(batch) > len(left):
            left = []
            while len(left) < len(batch):
                left += torch.randperm(examples, generator=generator).tolist()
        yield left[: len(batch)]
        left = left[len(batch) :]


def _only(examples: Examples, ids: Sequence[int]) -> Batch:
    (batch,) = examples.read([ids])
    return batch


@contextmanager
def _drawn_by(seed: int) -> Generator[None]:
    """What Python, NumPy and PyTorch draw meanwhile follows from the seed; afterwards they go on as they were."""
    python, array, tensor = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
        torch.set_rng_state(tensor)
