"""How many examples the curvature averages over: what is said, what nobody said, and what is left out."""

import pytest
import torch
from torch import nn

from stagetrace import EKFAC, Chain, Frozen, GaussNewton, Hessian, Query, Stage, trace
from stagetrace.curvature import Auto
from stagetrace.curvature.auto import coupling_indices, describe_subset
from stagetrace.curvature.subset import COUPLED, ENOUGH, FEWEST, PREDICTIONS, seeded_subset
from stagetrace.errors import DescriptionError
from stagetrace.objectives import NextToken, Regression

MANY = ENOUGH + 200


def bound(examples: int, weights: list[float] | None = None):
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(2, generator=generator), torch.randn(1, generator=generator)) for _ in range(examples)]
    return Chain(Stage("only", model=nn.Linear(2, 1), objective=Regression(), data=data, weights=weights))["only"]


@pytest.mark.parametrize("total", [1, ENOUGH - 1, ENOUGH])
def test_up_to_the_rules_number_all_examples_are_taken(total: int) -> None:
    assert seeded_subset(total, "auto", seed=3) == range(total)


def test_of_more_the_rules_number_is_drawn_by_the_seed() -> None:
    few, again, other = (seeded_subset(MANY, "auto", seed) for seed in (0, 0, 1))
    assert list(few) == list(again) != list(other)
    assert len(set(few)) == ENOUGH
    assert list(few) == list(seeded_subset(MANY, ENOUGH, 0))


def test_the_default_takes_the_rule_and_a_named_matrix_takes_all() -> None:
    many = bound(MANY)
    assert len(Auto().indices(many)) == ENOUGH
    for choice in (Auto(examples=None), Hessian(), GaussNewton()):
        assert len(choice.indices(many)) == MANY
    for choice in (Hessian("auto"), GaussNewton("auto")):
        assert list(choice.indices(many)) == list(Auto().indices(many))


def test_the_default_matrix_is_the_mean_over_the_drawn_examples() -> None:
    many = bound(MANY)
    xs = torch.stack([many.stage.data[index][0] for index in Auto().indices(many)]).double()
    ones = torch.cat([xs, torch.ones(len(xs), 1).double()], dim=1)
    dense = Auto().operator(many).to_dense().double()
    torch.testing.assert_close(dense, 2 * ones.mT @ ones / len(ones), rtol=1e-5, atol=1e-5)


def test_what_is_left_out_is_said_and_how_all_are_taken() -> None:
    many = bound(MANY)
    said = describe_subset(Auto(seed=4), many)
    assert said is not None
    for word in (f"{ENOUGH:,} of {MANY:,} examples", "seed 4", "--solve examples=all", "examples=None"):
        assert word in said
    typed = describe_subset(Hessian(50), many)
    assert typed is not None
    assert "--solve" not in typed
    assert describe_subset(Auto(examples=None), many) is None
    assert describe_subset(Auto(), bound(20)) is None


def test_a_run_says_it_of_each_stage_that_it_holds_for(recwarn: pytest.WarningsRecorder) -> None:
    first = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).double()
    data = [(torch.randn(2).double(), torch.randn(1).double()) for _ in range(MANY)]
    second = nn.Sequential(first[0], nn.Linear(2, 1)).double()
    chain = Chain(
        Stage("first", model=first, objective=Regression(), data=data),
        Stage("second", model=second, objective=Regression(), data=data[:30], link=Frozen("0")),
    )
    result = trace(chain, Query(data[:3]))
    notes = {stage: " ".join(solution.notes) for stage, solution in result.solutions.items()}
    assert f"{ENOUGH:,} of {MANY:,} examples" in notes["first"]
    assert "examples, drawn" not in notes["second"]
    assert not [
        each for each in recwarn if "examples, drawn" in str(each.message) and "converge" not in str(each.message)
    ]


def test_the_coupling_takes_more_by_the_rule_and_what_was_said_otherwise() -> None:
    many = bound(MANY)
    assert coupling_indices(Auto(), many, 1) == range(MANY)
    assert list(coupling_indices(Auto(), many, COUPLED)) == list(Auto().indices(many))
    assert len(coupling_indices(Auto(), many, 36)) == COUPLED // 36
    for choice in (Auto(50), Hessian(50)):
        assert list(coupling_indices(choice, many, 1)) == list(choice.indices(many))
    assert coupling_indices(Auto(examples=None), many, COUPLED) == range(MANY)


@pytest.mark.parametrize("examples", ["all", "1000", 0, 1.5, True])
@pytest.mark.parametrize("choice", [Auto, Hessian, GaussNewton])
def test_no_number(choice, examples) -> None:
    with pytest.raises(DescriptionError, match=r"examples=\.\.\."):
        choice(examples=examples)


class Sentences(nn.Module):
    """A prediction for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table(tokens)


@pytest.mark.parametrize(("tokens", "taken"), [(2, ENOUGH), (16, PREDICTIONS // 16), (100, FEWEST)])
def test_a_text_counts_for_its_tokens(tokens: int, taken: int) -> None:
    stage = Stage("only", model=Sentences(), objective=NextToken(), data=[torch.arange(tokens) % 5] * MANY)
    texts = Chain(stage)["only"]
    assert len(Auto().indices(texts)) == taken
    assert list(Auto(seed=3).indices(texts)) == list(seeded_subset(MANY, taken, 3))
    assert len(Auto(examples=None).indices(texts)) == MANY


def test_texts_are_counted_throughout_the_data_set() -> None:
    """A heading comes first, as it does in most corpora."""
    lengths = [2] * 8 + [40] * (MANY - 8)
    data = [torch.arange(length) % 5 for length in lengths]
    collate = lambda rows: nn.utils.rnn.pad_sequence(rows, batch_first=True)  # noqa: E731
    stage = Stage("only", model=Sentences(), objective=NextToken(), data=data, collate=collate)
    assert len(Auto().indices(Chain(stage)["only"])) == FEWEST


def test_of_uneven_weights_more_are_drawn_until_the_mean_scatters_as_little() -> None:
    many, rare = 3 * MANY, [0.0] * (3 * MANY)
    rare[7], rare[2000] = 1.0, 3.0  # two of 3,600: a thousand drawn mostly hold neither
    uneven, even, third = (bound(many, w) for w in (rare, [2.0] * many, [0.0, 3.0, 0.0] * MANY))
    assert list(Auto().indices(uneven)) == list(range(many))
    assert len(Auto().indices(even)) == len(Auto().indices(bound(many))) == ENOUGH
    assert len(Auto().indices(third)) == 3 * ENOUGH  # a thousand of them count
    columns = COUPLED // ENOUGH
    assert [len(coupling_indices(Auto(), each, columns)) for each in (uneven, even, third)] == [many, ENOUGH, 3000]
    for choice in (Hessian(50), GaussNewton(50), EKFAC(50)):
        with pytest.raises(DescriptionError, match=r"stage 'only': the 50 of 3,600 examples .* all have the weight 0"):
            choice.operator(uneven)
    said = describe_subset(Hessian(900), third)
    assert said is not None
    drawn = sum(index % 3 == 1 for index in seeded_subset(many, 900, 0))
    assert said.endswith(f"drawn by seed 0, whose mean weight is {3 * drawn / 900:.3g} times that of all")
