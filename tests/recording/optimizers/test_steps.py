"""One step of each rule: against the update written once more, for several queries, at 0, and in float32."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, optim

from stagetrace.recording.optimizers import Adjoint, State, rule_for
from tests.recording.optimizers.cases import CASES, Case, copied, random
from tests.recording.optimizers.updates import UPDATES


@dataclass(frozen=True)
class At:
    """Where a step is taken, with the optimiser that can take it."""

    state: State
    gradient: Tensor
    optimizer: optim.Optimizer
    after: Adjoint

    @property
    def group(self) -> Mapping[str, Any]:
        return self.optimizer.param_groups[0]

    @property
    def parameter(self) -> Tensor:
        return self.group["params"][0]

    @property
    def pulled(self) -> tuple[Adjoint, Tensor]:
        return rule_for(self.optimizer).pull_back(self.state, self.gradient, self.group, self.after)

    def stepped(self, gradient: Tensor) -> State:
        """The state after a real step from here."""
        self.parameter.data.copy_(self.state.value)
        self.optimizer.state[self.parameter] = copied(self.state.slots)
        self.parameter.grad = gradient.clone()
        self.optimizer.step()
        return State(self.parameter.detach().clone(), copied(self.optimizer.state[self.parameter]))


def at(case: Case, gradients: list[Tensor], value: Tensor, queries: int = 3, **settings: Any) -> At:
    """The last of these gradients' steps, from the slots that those before have left."""
    parameter = value.clone().requires_grad_()
    optimizer = case.make([parameter], **settings)
    for gradient in gradients[:-1]:
        parameter.grad = gradient.clone()
        optimizer.step()
    state = State(parameter.detach().clone(), copied(optimizer.state[parameter]))
    bars = [random(queries, *value.shape, seed=40 + s).to(value.dtype) for s in range(4)]
    slots = dict(zip(rule_for(optimizer).slots, bars[1:], strict=False))
    has = {name: bar for name, bar in slots.items() if state.slots.get(name) is not None}
    return At(state, gradients[-1], optimizer, Adjoint(bars[0], has))


def usual(case: Case, dtype: torch.dtype = torch.float64, queries: int = 3) -> At:
    gradients = [random(4, 3, seed=50 + step).to(dtype) for step in range(6)]
    return at(case, gradients, random(4, 3).to(dtype), queries)


def close(left: Tensor, right: Tensor, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    torch.testing.assert_close(left, right, rtol=rtol, atol=atol)


@pytest.fixture
def exact_rates() -> Iterator[None]:
    """Step counts and rates that optimisers keep as tensors are of the default precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("exact_rates")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step_pulls_back_as_the_update_written_once_more(case: Case) -> None:
    here = usual(case)
    group = {name: float(s) if isinstance(s, Tensor) else s for name, s in here.group.items()}
    slots = {name: here.state.slots[name] for name in here.after.slots}

    def step(value: Tensor, slots: dict[str, Tensor], gradient: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return UPDATES[case.optimizer](value, slots, gradient, group, 6)

    (value, stepped), pull, *_ = torch.func.vjp(step, here.state.value, slots, here.gradient)
    real = here.stepped(here.gradient)
    close(value, real.value)  # the update is PyTorch's
    for name, slot in stepped.items():
        close(slot, real.slots[name])

    before, gradient_bar = here.pulled
    for query in range(3):
        value_bar, slots_bar, expected = pull(
            (here.after.value[query], {name: bar[query] for name, bar in here.after.slots.items()})
        )
        close(before.value[query], value_bar)
        close(gradient_bar[query], expected)
        assert before.slots.keys() == slots_bar.keys()
        for name, bar in slots_bar.items():
            close(before.slots[name][query], bar)


def test_both_sides_of_the_maximum_of_amsgrad_are_met() -> None:
    case = next(case for case in CASES if case.settings.get("amsgrad"))
    before, _ = usual(case).pulled
    taken = before.slots["max_exp_avg_sq"] == 0
    assert taken.any()
    assert not taken.all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_queries_come_back_as_they_do_alone(case: Case) -> None:
    here = usual(case)
    together, gradient_bar = here.pulled
    for query in range(3):
        one = Adjoint(
            here.after.value[query : query + 1],
            {name: bar[query : query + 1] for name, bar in here.after.slots.items()},
        )
        alone, alone_bar = rule_for(here.optimizer).pull_back(here.state, here.gradient, here.group, one)
        close(together.value[query], alone.value[0])
        close(gradient_bar[query], alone_bar[0])
        for name, bar in alone.slots.items():
            close(together.slots[name][query], bar[0])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_slots_that_no_query_sees_may_be_left_out(case: Case) -> None:
    here = usual(case)
    zeros = Adjoint(here.after.value, {name: torch.zeros_like(bar) for name, bar in here.after.slots.items()})
    rule = rule_for(here.optimizer)
    full, full_bar = rule.pull_back(here.state, here.gradient, here.group, zeros)
    bare, bare_bar = rule.pull_back(here.state, here.gradient, here.group, Adjoint(here.after.value))
    close(full.value, bare.value)
    close(full_bar, bare_bar)
    for name, bar in full.slots.items():
        close(bare.slots.get(name, torch.zeros_like(bar)), bar)


@pytest.mark.parametrize("before", [0, 3], ids=["first step", "later"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_entry_never_seen_has_the_slope_that_a_small_gradient_finds(case: Case, before: int) -> None:
    """All gradients so far are 0, and the slots with them; then one of a millionth of eps, up or down."""
    zeros = torch.zeros(4, 3, dtype=torch.float64)
    settings: dict[str, Any] = {"eps": 1e-2, "weight_decay": 0.0} if "eps" in case.make([zeros]).defaults else {}
    here = at(case, [zeros] * (before + 1), zeros, **settings)
    adjoint, gradient_bar = here.pulled

    push = 1e-8
    up, down = here.stepped(torch.full_like(zeros, push)), here.stepped(torch.full_like(zeros, -push))
    expected = here.after.value * (up.value - down.value) / (2 * push)
    for name, bar in here.after.slots.items():
        expected = expected + bar * (up.slots[name] - down.slots[name]) / (2 * push)
    close(gradient_bar, expected, 1e-5)
    assert expected.abs().min() > 0
    assert adjoint.value.isfinite().all()
    assert all(bar.isfinite().all() for bar in adjoint.slots.values())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_entry_never_seen_is_finite_in_float32(case: Case) -> None:
    zeros = torch.zeros(4, 3)
    adjoint, gradient_bar = at(case, [zeros] * 3, zeros).pulled
    assert gradient_bar.isfinite().all()
    assert adjoint.value.isfinite().all()
    assert all(bar.isfinite().all() for bar in adjoint.slots.values())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_stays_float32_and_close_to_float64(case: Case) -> None:
    (low, low_bar), (high, high_bar) = usual(case, torch.float32).pulled, usual(case).pulled
    for found, exact in [
        (low.value, high.value),
        (low_bar, high_bar),
        *((low.slots[n], b) for n, b in high.slots.items()),
    ]:
        assert found.dtype == torch.float32
        close(found.double(), exact, 1e-3, 1e-4 * float(exact.abs().max()))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_given_is_written_to(case: Case) -> None:
    here = usual(case)
    given = [here.state.value, here.gradient, here.after.value, *here.after.slots.values(), *here.state.slots.values()]
    kept = [tensor.clone() for tensor in given if isinstance(tensor, Tensor)]
    _ = here.pulled
    assert all(
        torch.equal(tensor, copy)
        for tensor, copy in zip((t for t in given if isinstance(t, Tensor)), kept, strict=True)
    )


def test_a_parameter_may_be_a_single_number() -> None:
    for case in CASES:
        here = at(case, [random(seed=50 + step) for step in range(3)], random())
        spread = at(case, [random(seed=50 + step).expand(1) for step in range(3)], random().expand(1))
        rule = rule_for(here.optimizer)
        after = Adjoint(spread.after.value[:, 0], {name: bar[:, 0] for name, bar in spread.after.slots.items()})
        adjoint, gradient_bar = rule.pull_back(here.state, here.gradient, here.group, after)
        close(adjoint.value, spread.pulled[0].value[:, 0])
        close(gradient_bar, spread.pulled[1][:, 0])


def test_adamw_decays_apart_from_the_gradient_where_the_group_does_not_say() -> None:
    """As groups of PyTorch before 2.7 do not."""
    case = Case(optim.AdamW, {"weight_decay": 0.1})
    here = usual(case)
    silent = {name: setting for name, setting in here.group.items() if name != "decoupled_weight_decay"}
    adjoint, gradient_bar = rule_for(here.optimizer).pull_back(here.state, here.gradient, silent, here.after)
    close(adjoint.value, here.pulled[0].value)
    close(gradient_bar, here.pulled[1])


def test_adagrad_starts_a_parameter_that_came_late_from_its_first_value() -> None:
    """As `add_param_group` brings one, without slots."""
    case = Case(optim.Adagrad, {"initial_accumulator_value": 0.1})
    here = at(case, [random(4, 3, seed=50)], random(4, 3))
    late = rule_for(here.optimizer).pull_back(State(here.state.value), here.gradient, here.group, here.after)
    close(late[0].value, here.pulled[0].value)
    close(late[1], here.pulled[1])


@pytest.mark.parametrize("case", [case for case in CASES if case.optimizer is optim.SGD], ids=str)
def test_sgd_hands_nothing_on_to_a_buffer_that_was_not_there(case: Case) -> None:
    here = at(case, [random(4, 3, seed=50)], random(4, 3))
    after = Adjoint(here.after.value, {"momentum_buffer": here.after.value} if case.settings.get("momentum") else {})
    before, _ = rule_for(here.optimizer).pull_back(here.state, here.gradient, here.group, after)
    assert before.slots == {}
