"""The rules put together over several steps, against finite differences of the real optimiser's run."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stagetrace.recording.optimizers import State
from tests.recording.optimizers.cases import (
    CASES,
    Case,
    Start,
    answers,
    fresh,
    queries,
    random,
    reverse,
    train,
    warm,
)

STEPS = 3
ONES = torch.ones(8, dtype=torch.float64)


def difference(function: Callable[[float], Tensor], width: float = 1e-5) -> Tensor:
    """The derivative at 0 by central differences."""
    return (function(width) - function(-width)) / (2 * width)


@pytest.mark.parametrize("begin", ["fresh", "warm"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_derivative_of_a_run_is_that_of_running_it_again(case: Case, begin: str) -> None:
    start = fresh() if begin == "fresh" else warm(case)
    path, end, optimizer = train(case, start, ONES, STEPS)
    slots = [name for name, slot in end["rows"].slots.items() if isinstance(slot, Tensor) and slot.ndim]
    after = queries(end, tuple(slots))
    adjoints, by_weight = reverse(path, after, ONES, optimizer)

    def rerun(start: Start, weights: Tensor = ONES) -> Tensor:
        return answers(train(case, start, weights, STEPS)[1], after)

    def moved(at: float) -> Tensor:
        return rerun({n: State(s.value + at * random(*s.value.shape, seed=9), s.slots) for n, s in start.items()})

    def grown(slot: str) -> Callable[[float], Tensor]:
        # in proportion to itself, so that what sums squares stays positive
        def run(at: float) -> Tensor:
            return rerun(
                {
                    name: State(
                        state.value,
                        {**state.slots, slot: state.slots[slot] * (1 + at * random(*state.value.shape, seed=8))},
                    )
                    for name, state in start.items()
                }
            )

        return run

    def close(parts: list[tuple[Tensor, Tensor]], function: Callable[[float], Tensor]) -> None:
        """Compares the derivative along directions, which are given beside the derivatives by value."""
        found = torch.stack([(bar * direction).flatten(1).sum(1) for bar, direction in parts]).sum(0)
        torch.testing.assert_close(found, difference(function), rtol=2e-6, atol=2e-8)

    close([(adjoint.value, random(*adjoint.value.shape[1:], seed=9)) for adjoint in adjoints.values()], moved)
    close([(by_weight, random(8, seed=7))], lambda at: rerun(start, ONES + at * random(8, seed=7)))
    for slot in slots if begin == "warm" else []:
        directions = {name: s.slots[slot] * random(*s.value.shape, seed=8) for name, s in start.items()}
        close([(adjoints[name].slots[slot], directions[name]) for name in start], grown(slot))
