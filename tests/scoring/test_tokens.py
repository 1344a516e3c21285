"""Scores of single tokens: against training again, against each token's own gradient, and as terms of a sum."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagetrace import Chain, Direct, Hessian, Lanczos, Query, Stage, Trace, hf, trace
from stagetrace.errors import DescriptionError, DifferentiationError, StagetraceWarning
from stagetrace.hf.weights import PerToken, Smoothed
from stagetrace.objectives import Classification, MaskedToken, NextToken
from stagetrace.tracing import sieve
from tests.hf import tiny

SOLVE: dict[str, Any] = {"curvature": "identity", "solver": Lanczos(damping=0.0)}
EXACT: dict[str, Any] = {"curvature": Hessian(), "solver": Direct()}
IGNORED = -100
WORDS, DECAY = 4, 0.05


class Bigrams(nn.Module):
    """The logits of the next word are a row of a matrix: a convex loss."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(WORDS, WORDS, dtype=torch.float64))

    def forward(self, words: Tensor) -> Tensor:
        return F.one_hot(words, WORDS).to(self.table.dtype) @ self.table


SENTENCES = [torch.tensor(words) for words in ([0, 1, 2, 3], [2, 1, 1, 0], [3, 3, 0, 2], [1, 0, 2, 2], [0, 3, 1, 1])]


def solved(weights: Tensor, start: Tensor) -> Tensor:
    """The table that minimises the mean over sentences of the mean over tokens, each times its weight `[5, 3]`."""

    def objective(flat: Tensor) -> Tensor:
        each = torch.stack([F.cross_entropy(flat.view(WORDS, -1)[s[:-1]], s[1:], reduction="none") for s in SENTENCES])
        return (each * weights / 3).sum() / len(SENTENCES) + DECAY / 2 * flat.square().sum()

    point = start.flatten()
    for _ in range(20):  # Newton's method
        gradient = torch.func.grad(objective)(point)
        if gradient.norm() < 1e-14:
            return point.view(WORDS, WORDS)
        point = point - torch.linalg.solve(torch.func.hessian(objective)(point), gradient)
    raise AssertionError("Newton's method did not end")


def test_a_token_s_score_is_what_its_weight_does_to_training():
    ones = torch.ones(5, 3, dtype=torch.float64)
    model, asked = Bigrams(), torch.tensor([2, 0, 1])
    with torch.no_grad():
        model.table.copy_(solved(ones, model.table))
    stage = Stage("fit", model=model, objective=NextToken(), data=SENTENCES, weight_decay=DECAY, batch_size=2)
    found = trace(Chain(stage), Query([asked]), tokens=True, **EXACT).tokens["fit"]
    for index in range(5):
        assert found[index].positions.tolist() == [1, 2, 3]
        assert found[index].tokens.tolist() == SENTENCES[index][1:].tolist()
        for place in range(3) if index in (1, 4) else ():
            step = torch.zeros_like(ones)
            step[index, place] = h = 1e-4  # d/d epsilon of mean loss + epsilon * loss_t, so 5 epsilon in the weight
            up, down = (solved(ones + sign * 5 * step, model.table.detach()) for sign in (1, -1))
            losses = [F.cross_entropy(table[asked[:-1]], asked[1:]) for table in (up, down)]
            expected = float(losses[0] - losses[1]) / (2 * h)
            assert float(found[index].values[place]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def left_padded(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """As trainers pad for generation: on the left."""
    length = max(len(row["input_ids"]) for row in rows)
    short = [length - len(row["input_ids"]) for row in rows]
    return {
        "input_ids": torch.tensor([[0] * n + list(row["input_ids"]) for n, row in zip(short, rows, strict=True)]),
        "attention_mask": torch.tensor([[0] * n + [1] * (length - n) for n in short]),
        "position_ids": torch.tensor([[0] * n + list(range(length - n)) for n in short]),
    }


def causal(objective: Any, **settings: Any) -> Stage:
    model = tiny.model("GPT2LMHeadModel").double()
    described = hf.stage("fit", model, tiny.rows(), tokenizer=tiny.tokenizer(marks=False), objective=objective)
    given: dict[str, Any] = {"collate": described.collate, **settings}
    return Stage("fit", model=model, objective=objective, data=described.data, **given)


def masked(objective: Any, **settings: Any) -> Stage:
    model = tiny.model("BertForMaskedLM").double()
    masks = hf.Masking(0.4, seed=1)
    described = hf.stage("fit", model, tiny.rows(), tokenizer=tiny.tokenizer(), objective=objective, masking=masks)
    given: dict[str, Any] = {"collate": described.collate, **settings}
    return Stage("fit", model=model, objective=objective, data=described.data, **given)


STAGES = {
    "next token": lambda **s: causal(NextToken(), **s),
    "next token, padded on the left": lambda **s: causal(NextToken(), **{"collate": left_padded, **s}),
    "per token, summed": lambda **s: causal(PerToken(NextToken("sum"), 3.5), **s),
    "smoothed": lambda **s: causal(Smoothed(0.1, shifted=True), **s),
    "masked token": lambda **s: masked(MaskedToken(), **s),
}


def own_terms(stage: Stage, features: dict[str, Any]) -> list[tuple[int, int, Tensor]]:
    """Position, token and term of the loss of each predicted token of one example, without padding or batches."""
    ids = torch.tensor(features["input_ids"])
    mask = torch.tensor(features["attention_mask"])
    logits = stage.model(input_ids=ids[None], attention_mask=mask[None]).logits[0]
    labels = torch.tensor(features["labels"])
    shifted = not isinstance(stage.objective, MaskedToken)
    smoothing = stage.objective.factor if isinstance(stage.objective, Smoothed) else 0.0
    places = [t for t in range(int(shifted), len(ids)) if int(labels[t]) != IGNORED]
    divisor = stage.objective.tokens if isinstance(stage.objective, PerToken) else max(1, len(places))
    return [
        (t, int(labels[t]), F.cross_entropy(logits[t - shifted], labels[t], label_smoothing=smoothing) / divisor)
        for t in places
    ]


QUICK = ("masked token",)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in STAGES])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_scores_of_tokens_are_their_gradients_along_the_adjoint_and_sum_to_the_example_s(name: str):
    stage = STAGES[name](batch_size=3)
    result = trace(Chain(stage), Query(stage.data), tokens=True, **SOLVE)
    found, scores, adjoint = result.tokens["fit"], result["fit"].values, result.solutions["fit"].value[:, 0]
    size = float(scores.abs().max())
    parameters = [p for p in stage.model.parameters() if p.requires_grad]
    for index in range(0, len(stage.data), 2):
        mine = found[index]
        terms = own_terms(stage, stage.data[index])
        assert [(t, word) for t, word, _ in terms] == list(
            zip(mine.positions.tolist(), mine.tokens.tolist(), strict=True)
        )
        for (_, _, loss), value in zip(terms, mine.values, strict=True):
            slopes = torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True, retain_graph=True)
            expected = -float(torch.cat([slope.flatten() for slope in slopes]) @ adjoint)
            assert float(value) == pytest.approx(expected, rel=1e-5, abs=1e-6 * size)
        assert float(mine.total) == pytest.approx(float(scores[index]), rel=0, abs=1e-6 * size)
    without = trace(Chain(stage), Query(stage.data), **SOLVE)["fit"].values
    torch.testing.assert_close(scores, without, rtol=0, atol=1e-9 * size)


def same(one: Trace, other: Trace) -> None:
    ours, theirs = one.tokens["fit"], other.tokens["fit"]
    assert (ours.index.tolist(), ours.position.tolist()) == (theirs.index.tolist(), theirs.position.tolist())
    torch.testing.assert_close(ours.values, theirs.values, rtol=0, atol=2e-7 * float(theirs.values.abs().max()))


def test_what_is_kept_depends_on_the_scores_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sieve, "ENDS", 1)
    stage = causal(NextToken(), batch_size=8)
    pairs = Query([stage.data[0], stage.data[4]], collate=stage.collate, reduction="none")
    whole, rows, some = (
        trace(Chain(stage), query, tokens=n, parts=n == 12, **SOLVE)
        for query, n in ((Query(stage.data), True), (pairs, 5), (Query(stage.data), 12))
    )
    found, every = some.tokens["fit"], whole.tokens["fit"]
    harmful, helpful = (int(some["fit"].top(1, harmful=harmful).indices[0]) for harmful in (True, False))
    for index in range(len(stage.data)):
        few, all_of_it = found[index], every[index]
        assert float(few.total) == pytest.approx(float(all_of_it.total), abs=1e-6)
        if index in (harmful, helpful):
            assert few.positions.tolist() == all_of_it.positions.tolist()
    assert every.scored == found.scored == every.kept == 25
    sizes = every.values.abs().sort(descending=True).values
    assert found.largest_left_out <= float(sizes[12])
    assert [row[:3] for row in found.top(2)] == [row[:3] for row in every.top(2)]
    with pytest.raises(DescriptionError, match="certain"):
        found.top(25)
    assert rows.tokens["fit"].n_queries == 2
    for index in range(len(stage.data)):
        torch.testing.assert_close(
            rows.tokens["fit"][index].total, rows["fit"].values[:, index].double(), atol=1e-6, rtol=0
        )
    monkeypatch.setattr(sieve, "ROOM", 0)  # lets tokens go after each batch
    same(trace(Chain(causal(NextToken(), batch_size=1)), Query(stage.data), tokens=12, **SOLVE), some)


class Cubed(torch.autograd.Function):
    """An operation without a forward mode, which can be differentiated twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * slopes[0]


class Cubes(Bigrams):
    def forward(self, words: Tensor) -> Tensor:
        return Cubed.apply(super().forward(words))


class Bags(Bigrams):
    """An operation that has neither."""

    def forward(self, words: Tensor) -> Tensor:
        return F.embedding_bag(words.reshape(-1, 1), self.table, mode="max").view(*words.shape, WORDS)


def drawn(kind: type[Bigrams]) -> Stage:
    torch.manual_seed(0)
    model = kind()
    nn.init.normal_(model.table)
    return Stage("fit", model=model, objective=NextToken(), data=SENTENCES)


@pytest.mark.filterwarnings("ignore")
def test_a_model_without_forward_mode_is_differentiated_backward_twice():
    stage = drawn(Cubes)
    result = trace(Chain(stage), Query(SENTENCES[:1]), tokens=True, curvature="identity", solver=Lanczos(damping=0.0))
    assert result.statistics["scoring"]["fit"]["way"] == "backward twice, token by token"  # type: ignore[index,call-overload]
    logits = stage.model(SENTENCES[2][:-1])
    loss = F.cross_entropy(logits, SENTENCES[2][1:], reduction="none")[1] / 3
    expected = (
        -torch.autograd.grad(loss, [*stage.model.parameters()])[0].flatten() @ result.solutions["fit"].value[:, 0]
    )
    assert float(result.tokens["fit"][2].values[1]) == pytest.approx(float(expected), rel=1e-6)
    with pytest.raises(DifferentiationError, match="scores of single tokens need a derivative"):
        trace(Chain(drawn(Bags)), Query(SENTENCES[:1]), tokens=True, curvature="identity", solver=Lanczos(damping=0.0))


class Wrong:
    """Token losses that are not divided as the losses are."""

    inner = NextToken()

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return self.inner.outputs(model, batch)

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        return self.inner.losses(outputs, batch)

    def token_losses(self, outputs: Tensor, batch: Any) -> Tensor:
        return 2 * self.inner.token_losses(outputs, batch)

    def predicted(self, batch: Any) -> Tensor:
        return self.inner.predicted(batch)


def test_what_has_no_scores_of_tokens_is_refused():
    stage = drawn(Bigrams)

    def refused(match: str, stage: Stage = stage, query: Query | None = None, tokens: Any = True) -> None:
        with pytest.raises(DescriptionError, match=match):
            trace(Chain(stage), query or Query(SENTENCES[:1]), tokens=tokens, curvature="identity")

    refused("how many tokens of a stage are kept, got 'yes'", tokens="yes")
    refused("how many tokens of a stage are kept, got -1", tokens=-1)
    refused("up to 8 queries, got 9", query=Query([SENTENCES[0]] * 9, reduction="none"))
    wrong = Stage("fit", model=stage.model, objective=Wrong(), data=SENTENCES)
    refused(r"do not add up to its losses", stage=wrong)
    plain = Stage("fit", model=nn.Linear(2, 3), objective=Classification(), data=[(torch.ones(2), 1)])
    refused("is not a sum over tokens", stage=plain, query=Query([(torch.ones(2), 0)]))


def test_of_a_chain_the_stages_that_can_are_scored():
    first = masked(MaskedToken())
    last = hf.stage(
        "last",
        tiny.grown("BertForSequenceClassification", first.model).double(),
        tiny.rows(2),
        tokenizer=tiny.tokenizer(),
        after=first,
    )
    with pytest.warns(StagetraceWarning, match="no scores of tokens: the loss of stage 'last'"):
        result = trace(Chain(first, last), hf.query(tiny.rows(2)[:2], stage=last), tokens=True, **SOLVE)
    assert list(result.tokens) == ["fit"]
    totals = [float(result.tokens["fit"][index].total) for index in range(len(first.data))]
    torch.testing.assert_close(torch.tensor(totals), result["fit"].values.float())


def test_weights_of_examples_weigh_their_tokens():
    plain = drawn(Bigrams)
    weights = [1.0, 2.0, 0.5, 1.0, 0.5]  # of mean 1
    weighed = Stage("fit", model=plain.model, objective=NextToken(), data=SENTENCES, weights=weights)
    one, other = (trace(Chain(stage), Query(SENTENCES[:1]), tokens=True, **SOLVE) for stage in (plain, weighed))
    for index in range(len(SENTENCES)):
        total = float(other.tokens["fit"][index].total)
        assert total == pytest.approx(float(other["fit"].values[index]), abs=1e-6)
        torch.testing.assert_close(other.tokens["fit"][index].values, weights[index] * one.tokens["fit"][index].values)
