"""Training again without tokens: what is taken out, what stays, and what the scores predict of it."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stagetrace import Chain, Direct, Hessian, Query, Stage
from stagetrace.errors import DescriptionError
from stagetrace.objectives import Classification, NextToken
from stagetrace.validation import (
    GradientDot,
    GroupRemovals,
    Influence,
    Random,
    RandomRemovals,
    Resolve,
    Steps,
    validate,
)
from stagetrace.validation.fits.optimizers import SGD
from stagetrace.validation.token_masks import TokenNumbers, without_tokens
from tests import commands
from tests.scoring.test_tokens import DECAY, SENTENCES, Bigrams, causal, left_padded, solved

ONES = torch.ones(5, 3, dtype=torch.float64)
EXACT = [Influence(Hessian(), Direct())]


def job(**settings: Any) -> tuple[Chain, Query]:
    """Bigrams at their minimum, and another sentence."""
    model = Bigrams()
    with torch.no_grad():
        model.table.copy_(solved(ONES, model.table))
    stage = Stage("fit", model=model, objective=NextToken(), data=SENTENCES, weight_decay=DECAY, batch_size=2)
    return Chain(stage), Query([torch.tensor([2, 0, 1])])


def target() -> tuple[Chain, Query]:
    """A TARGET."""
    return job()


def query_loss(table: Tensor) -> float:
    return float(F.cross_entropy(table[[2, 0]], torch.tensor([0, 1])))


def test_scores_of_tokens_predict_training_again_without_them():
    chain, query = job()
    choices = [RandomRemovals(6, by=0.05), GroupRemovals(0.2, 3)]
    found = validate(chain, query, fit=Resolve(), choices=choices, estimators=EXACT, processes=1, tokens=True)
    small, groups = found.measured
    assert (small.choice, groups.choice) == ("6 at random, 0.05 of each, tokens", "3 groups of 0.2, tokens")
    start, numbers = solved(ONES, torch.zeros(4, 4, dtype=torch.float64)), TokenNumbers.of(chain["fit"])
    assert len(numbers) == 15
    for measured in (small, groups):
        for removal, effect in zip(measured.removals, measured.true.tolist(), strict=True):
            weights = ONES.clone()
            for number in removal:  # tokens are numbered by example and position
                weights[number // 3, number % 3] -= measured.by
            expected = query_loss(solved(weights, start)) - query_loss(start)
            assert effect == pytest.approx(expected, rel=1e-4, abs=1e-9)
    agreement = small.agreement["multi-stage influence"]
    assert agreement.pearson_r > 0.9999
    assert agreement.slope == pytest.approx(1, abs=0.02)


def test_a_mask_takes_the_terms_out_and_keeps_the_divisor():
    stage = causal(NextToken(), collate=left_padded, batch_size=3)
    bound = Chain(stage)["fit"]
    masked = without_tokens(bound, {0: [2, 3], 4: [1]}, by=0.5)
    batches = [(next(iter(b.risk.read([[0, 1, 4]]))), b.risk) for b in (bound, masked)]
    (batch, risk), (again, other) = batches
    whole = risk.losses(risk.trained_values, risk.inherited_values, batch)
    each = risk.token_losses(risk.trained_values, risk.inherited_values, batch)
    length = each.shape[1]
    short = [length - len(stage.data[index]["input_ids"]) for index in (0, 1, 4)]
    taken = torch.stack([each[0, [short[0] + 2, short[0] + 3]].sum(), each[1, 0] * 0, each[2, short[2] + 1]])
    found = other.losses(other.trained_values, other.inherited_values, again)
    torch.testing.assert_close(found, whole - 0.5 * taken)
    assert (taken[[0, 2]] > 0).all()


def test_what_cannot_be_trained_without_tokens_is_refused():
    chain, query = job()

    def refused(match: str, chain: Chain = chain, query: Query = query, **settings: Any) -> None:
        given: dict[str, Any] = {"fit": Resolve(), "choices": [RandomRemovals(3)], "processes": 1} | settings
        with pytest.raises(DescriptionError, match=match):
            validate(chain, query, tokens=True, **given)

    refused("it predicts the removal of whole examples, not of tokens", estimators=[GradientDot()])
    refused(r"trained without tokens by Steps\(\.\.\.\) or Resolve", fit=lambda weights: Bigrams())
    plain = Stage("fit", model=torch.nn.Linear(2, 3), objective=Classification(), data=[(torch.ones(2), 1)])
    refused("has no losses of single tokens", Chain(plain), Query([(torch.ones(2), 1)]))


def test_tokens_by_steps(tmp_path: Any):
    chain, query = job()
    steps = Steps(SGD(lr=0.1), steps=4, batch_size=2)
    settings: dict[str, Any] = {"choices": [RandomRemovals(3)], "estimators": [*EXACT, Random()], "processes": 1}
    found = [
        validate(chain, query, fit=steps, seeds=(0, 1), tokens=True, out=tmp_path / "run", **settings) for _ in range(2)
    ]
    assert torch.equal(found[0].measured[0].effects, found[1].measured[0].effects)
    assert found[0].measured[0].effects.shape == (2, 3)
    assert bool(found[0].measured[0].effects.any())


def test_the_command_line_removes_tokens(tmp_path: Any):
    words = ["--tokens", "--largest", 3, "--random", 3, "--by", 0.1, "--retrain", "resolve", "--processes", 1]
    ended, printed, said = commands.stagetrace("validate", f"{__file__}:target", "--out", tmp_path / "run", *words)
    assert ended == 0, said
    shown = " ".join(printed.split())
    assert "3 largest, 0.1 of each, tokens" in shown
    assert "it predicts the removal of whole examples, not of tokens" in shown
