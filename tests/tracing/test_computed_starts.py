"""Stages that started from a function of the stage before's parameters: against stages really solved and run again."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagetrace import Chain, Direct, Frozen, Hessian, Proximal, Query, Recording, Stage, Unrolled, trace
from stagetrace.errors import DescriptionError
from stagetrace.objectives import Regression
from stagetrace.stages.fingerprint import fingerprint_link
from stagetrace.stages.identity import Identity
from stagetrace.stages.links import Computed
from stagetrace.validation.rebinding import values_from_previous
from stagetrace.validation.resolving import leave_out, query_loss, resolve
from tests.chains import MERGED, ChainCase, chain_of, query_of
from tests.oracles import mean_weights, solved, solved_again, truth

EXACT: dict[str, Any] = {"curvature": Hessian(), "solver": Direct()}
MERGE = Computed(("base.weight", "down", "up"), lambda weight, down, up: weight + up @ down)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case is not MERGED[1]), id=case.name) for case in MERGED]
)
def test_scores_of_every_stage_equal_the_resolved_query_loss(case: ChainCase):
    result = trace(chain_of(case, solved(case)), query_of(case, reduction="none"), **EXACT)
    for position, stage in enumerate(case.stages):
        expected = truth(case, position)
        assert float((result[stage.name].values - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_retraining_goes_on_from_what_the_function_makes_of_the_new_values():
    """A tenth of an example of the first stage gone, all three solved again by the library and by the oracle."""
    case = MERGED[1]
    chain, query = chain_of(case, solved(case)), query_of(case)
    again = resolve(chain, "first", leave_out(len(case.stages[0].x), [3], share=0.1)).chain
    weights = mean_weights(case.stages[0]).repeat(2, 1)
    weights[1, 3] *= 0.9
    before, after = solved_again(case, 0, weights).mean(dim=1)
    torch.testing.assert_close(query_loss(again, query) - query.loss(chain.last), after - before, rtol=1e-5, atol=0)
    last = chain.last
    assert last.previous is not None
    copies = {name: torch.stack([p, 2 * p]) for name, p in last.previous.model.named_parameters()}
    both = values_from_previous(last, copies, anchored=True)["embedding.weight"]
    names, function = case.stages[2].link.shared["embedding.weight"]  # pyright: ignore[reportOptionalMemberAccess]
    for place, value in enumerate(both):
        torch.testing.assert_close(value, function(*(copies[name][place] for name in names)).detach())


class LowRank(nn.Module):
    """`x -> (W + u d) x + b`."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(3, 2)
        self.down, self.up = nn.Parameter(torch.randn(1, 3)), nn.Parameter(torch.randn(2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (x @ self.down.T) @ self.up.T


def rows(seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(3, generator=generator).double(), torch.randn(2, generator=generator).double()) for _ in range(6)
    ]


def merged(first: LowRank) -> nn.Linear:
    after = nn.Linear(3, 2).double()
    with torch.no_grad():
        after.weight.copy_(first.base.weight + first.up @ first.down)
        after.bias.copy_(first.base.bias)
    return after


def stage(model: nn.Module, link: Any = None, **settings: Any) -> Stage:
    name, data = ("first", rows(0)) if isinstance(model, LowRank) else ("second", rows(1))
    return Stage(name, model=model, objective=Regression(), data=data, link=link, **settings)


def low_rank() -> LowRank:
    torch.manual_seed(0)
    return LowRank().double()


def test_recorded_steps_hand_their_start_on_through_the_function(tmp_path: Path):
    """Against a difference quotient: another first stage, merged, and the very steps taken from there."""
    first = low_rank()

    def losses_at(model: nn.Linear, ids: list[int]) -> Tensor:
        x, y = (torch.stack([rows(1)[i][column] for i in ids]) for column in (0, 1))
        return (model(x) - y).square().mean()

    order = [[0, 2], [1, 3], [2, 4], [3, 5]]

    def trained(start: nn.Linear) -> nn.Linear:
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for ids in order:
            optimizer.zero_grad()
            losses_at(model, ids).backward()
            optimizer.step()
        return model

    def loss_after(values: Tensor) -> float:
        model = copy.deepcopy(first)
        torch.nn.utils.vector_to_parameters(values, model.parameters())
        after = trained(merged(model))
        with torch.no_grad():
            return float(torch.stack([(after(x) - y).square().mean() for x, y in rows(2)]).mean())

    model = merged(first)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(tmp_path / "recording", model, optimizer) as recording:
        for ids in order:
            with recording.batch(ids, [torch.stack(column) for column in zip(*(rows(1)[i] for i in ids), strict=True)]):
                optimizer.zero_grad()
                losses_at(model, ids).backward()
            optimizer.step()
    names = {"weight": MERGE, "bias": "base.bias"}
    second = stage(model, Unrolled(names, tmp_path / "recording"))
    before = stage(first, weight_decay=5.0)
    values = trace(Chain(before, second), Query(rows(2)), **EXACT)["first"].values

    at = torch.nn.utils.parameters_to_vector(first.parameters()).detach()
    steps = 1e-5 * torch.eye(len(at)).double()
    slope = torch.tensor([(loss_after(at + h) - loss_after(at - h)) / 2e-5 for h in steps]).double()

    x, y = (torch.stack(column) for column in zip(*rows(0), strict=True))

    def losses(values: Tensor) -> Tensor:
        sizes = [p.numel() for p in first.parameters()]
        point = {n: v.reshape(p.shape) for (n, p), v in zip(first.named_parameters(), values.split(sizes), strict=True)}
        return (torch.func.functional_call(first, point, (x,)) - y).square().mean(dim=1)

    hessian = torch.func.hessian(lambda v: losses(v).mean() + 5 * v.square().sum() / 2)(at)
    expected = -torch.func.jacrev(losses)(at) @ torch.linalg.solve(hessian, slope)
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-9)


class TestRefusals:
    @pytest.mark.parametrize(
        ("of", "function", "says"),
        [
            ((), lambda: 0, r"of= must be the names"),
            (("a", "a"), lambda a, b: a, "names a parameter twice"),
            (("a",), "merge", r"function= must take 1 tensors and return one, got 'merge'"),
        ],
    )
    def test_of_what_is_no_function_of_names(self, of: Any, function: Any, says: str):
        with pytest.raises(DescriptionError, match=says):
            Computed(of, function)

    @pytest.mark.parametrize(
        ("shared", "says"),
        [
            ({"weight": Computed(("base.weight", "nothing"), lambda a, b: a)}, "has no parameter 'nothing'"),
            ({"nothing": MERGE}, "there is no parameter 'nothing', a function of base.weight, down, up"),
            (
                {"weight": Computed(("down", "up"), lambda a, b: b @ b.T)},
                r"shape \[2, 3\].* computed as one of \[2, 2\]",
            ),
            ({"weight": Computed(("down", "up"), lambda a, b: a @ a)}, r"function fails .* \[1, 3\], \[2, 1\]"),
            ({"weight": Computed(("up",), lambda a: 1.0)}, "must return a tensor of real numbers, got float"),
            ({"weight": 3}, r"names to names \(strings\), or to Computed"),
        ],
    )
    def test_of_a_function_that_does_not_fit(self, shared: Any, says: str):
        first = low_rank()
        with pytest.raises(DescriptionError, match=says):
            Chain(stage(first), stage(merged(first), Proximal(shared)))

    def test_of_a_function_that_cuts_the_derivative(self):
        first = low_rank()
        cut = Computed(MERGE.of, lambda weight, down, up: (weight + up @ down).detach())
        chain = Chain(stage(first), stage(merged(first), Proximal({"weight": cut})))
        with pytest.raises(DescriptionError, match=r"no derivative goes through the function .*leave out \.detach"):
            trace(chain, Query(rows(2)), **EXACT)

    def test_of_values_that_are_not_what_they_were_computed_as(self):
        first = low_rank()
        after = merged(first)
        link = Frozen({"weight": MERGE})
        assert Chain(stage(first), stage(after, link)).last.inherited_from["weight"].of == MERGE.of  # pyright: ignore[reportAttributeAccessIssue]
        with torch.no_grad():
            after.weight[0, 0] += 1e-6
        with pytest.raises(DescriptionError, match=r"'weight' should be kept from a function of .*by up to 1e-06"):
            Chain(stage(first), stage(after, link))


def test_a_computed_parameter_is_in_no_prefix_and_sources_may_be_shared_too():
    first = low_rank()
    after = LowRank().double()
    after.load_state_dict(first.state_dict())
    with torch.no_grad():
        after.base.weight += first.up @ first.down
    last = Stage(
        "second",
        model=after,
        objective=Regression(),
        data=rows(1),
        link=Proximal({"": "", "base.weight": MERGE}, alpha=0.5),
    )
    bound = Chain(stage(first), last).last
    assert bound.anchored_to == {"base.weight": MERGE, "base.bias": "base.bias", "down": "down", "up": "up"}
    torch.testing.assert_close(bound.anchored.start["base.weight"], after.base.weight)


def test_another_function_is_another_run():
    one, two = (
        fingerprint_link(Frozen({"weight": Computed(MERGE.of, function)}), Identity())
        for function in (lambda w, d, u: w + u @ d, lambda w, d, u: w + 2 * u @ d)
    )
    assert one != two
    assert one == fingerprint_link(Frozen({"weight": Computed(MERGE.of, lambda w, d, u: w + u @ d)}), Identity())
