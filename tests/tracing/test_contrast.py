"""A query's contrast: the loss of some examples less that of others, in one walk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from stagetrace import Chain, Direct, Hessian, Lanczos, Query, Trace, hf, trace
from stagetrace.errors import DataError, DescriptionError, ResultsError
from stagetrace.results import read_rankings
from stagetrace.tracing import rank
from stagetrace.validation import BM25, GradientDot
from stagetrace.validation.resolving import query_loss
from tests.chains import STRONG_TANH, THREE_FROZEN, ChainCase, chain_of
from tests.hf import tiny
from tests.oracles import query_losses, solved, truth

EXACT: dict[str, Any] = {"curvature": Hessian(), "solver": Direct()}


def some(case: ChainCase, first: int, stop: int) -> TensorDataset:
    return TensorDataset(case.query_x[first:stop], case.query_y[first:stop])


@pytest.mark.parametrize(
    "case", [pytest.param(THREE_FROZEN, marks=pytest.mark.slow), STRONG_TANH], ids=lambda case: case.name
)
def test_scores_are_what_training_again_does_to_the_difference_of_the_losses(case: ChainCase):
    chain = chain_of(case, solved(case))
    mean = Query(some(case, 0, 5), contrast=some(case, 5, 7))  # of different lengths
    pairs = Query(some(case, 0, 3), contrast=some(case, 3, 6), reduction="none")
    result, rows = trace(chain, mean, **EXACT), trace(chain, pairs, **EXACT)
    for position, stage in enumerate(case.stages):
        again = truth(case, position)  # [7 queries, examples], by solving every stage again
        expected = again[:5].mean(dim=0) - again[5:].mean(dim=0)
        assert (result[stage.name].values - expected).abs().max() <= case.tolerance * expected.abs().max()
        expected = again[:3] - again[3:6]
        assert (rows[stage.name].values - expected).abs().max() <= case.tolerance * expected.abs().max()
    losses = query_losses(case, solved(case)[-1])
    assert float(query_loss(chain, mean)) == pytest.approx(float(losses[:5].mean() - losses[5:].mean()), abs=1e-12)
    torch.testing.assert_close(query_loss(chain, pairs), losses[:3] - losses[3:6], rtol=0, atol=1e-12)


def test_blocks_of_queries_keep_their_pairs():
    case = STRONG_TANH
    chain = chain_of(case, solved(case))
    pairs = Query(some(case, 0, 3), contrast=some(case, 3, 6), reduction="none")
    whole, blocks = (rank(chain, pairs, top=4, **EXACT, memory=memory) for memory in (2**30, 1))
    for name in whole:
        assert torch.equal(whole[name].harmful, blocks[name].harmful)
        torch.testing.assert_close(whole[name].harmful_scores, blocks[name].harmful_scores)


def test_a_run_is_known_by_its_contrast(tmp_path: Path):
    case = STRONG_TANH
    chain = chain_of(case, solved(case))

    def run(contrast: Any) -> Trace:
        return trace(chain, Query(some(case, 0, 4), contrast=contrast), out=tmp_path / "run", **EXACT)

    kept = run(some(case, 4, 7))
    assert kept.contrast == 3
    assert "query's less its contrast's (of 3)" in kept.summary()
    assert torch.equal(run(some(case, 4, 7))["finetune"].values, kept["finetune"].values)
    for other in (None, some(case, 4, 6)):
        with pytest.raises(ResultsError, match=r"query\.contrast"):
            run(other)
    ranked = Query(some(case, 0, 3), contrast=some(case, 3, 6), reduction="none")
    rank(chain, ranked, top=2, out=tmp_path / "ranked", **EXACT)
    assert set(read_rankings(tmp_path / "ranked")) == {"pretrain", "finetune"}


def test_estimators_take_the_difference_too():
    case = STRONG_TANH
    chain, texts = chain_of(case, solved(case)), [{"text": "a cat"}, {"text": "a dog"}, {"text": "one dog ran"}]
    ours, theirs = some(case, 0, 4), some(case, 4, 7)
    found, first, second = (
        GradientDot().removal_effects(chain, query, "finetune")
        for query in (Query(ours, contrast=theirs), Query(ours), Query(theirs))
    )
    torch.testing.assert_close(found, first - second)
    causal = tiny.model("GPT2LMHeadModel")
    stage = hf.stage("causal", causal, texts, tokenizer=tiny.tokenizer(marks=False))
    rows = BM25(lambda row: str(row["input_ids"])).removal_effects(
        Chain(stage), hf.query("a cat", contrast="a dog", stage=stage), "causal"
    )
    assert rows[0] > 0 > rows[1]  # like the query; like the contrast


def test_two_completions_of_a_prompt():
    stage = hf.stage(
        "causal", tiny.model("GPT2LMHeadModel").double(), tiny.rows(), tokenizer=tiny.tokenizer(marks=False)
    )

    def completing(text: str) -> list[dict[str, str]]:
        return [{"prompt": "the cat", "completion": text}]

    def traced(data: Any, contrast: Any = None) -> torch.Tensor:
        asked = hf.query(data, contrast=contrast, stage=stage)
        return trace(Chain(stage), asked, curvature="gauss-newton", solver=Lanczos(damping=0.1, rtol=1e-9))[
            "causal"
        ].values

    one = traced(completing(" sat on the mat"), completing(" ran"))
    expected = traced(completing(" sat on the mat")) - traced(completing(" ran"))
    torch.testing.assert_close(one, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_single_examples_need_a_contrast_each():
    pairs = Query(CASE_DATA, contrast=CASE_DATA, reduction="none")
    assert len(pairs.each_of([2, 0]).contrast) == 2
    with pytest.raises(DescriptionError, match="all query examples together, not of each"):
        Query(CASE_DATA, contrast=CASE_DATA).each_of([2, 0])


CASE_DATA = TensorDataset(torch.ones(3, 1), torch.ones(3, 1))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Query(CASE_DATA, contrast=Subset(CASE_DATA, [0]), reduction="none"), r"contrast has 1 .* query's 3"),
        (lambda: Query(CASE_DATA, contrast=Query(CASE_DATA)), "contrast=other.data"),
        (lambda: Query(CASE_DATA, contrast="neutral"), "the query's contrast: data must be"),
    ],
    ids=["pairs", "query", "text"],
)
def test_what_is_no_contrast_is_refused(make: Any, says: str):
    with pytest.raises(DescriptionError, match=says):
        make()


def test_a_contrast_of_the_same_examples_is_refused():
    case = STRONG_TANH
    query = Query(some(case, 0, 4), contrast=some(case, 0, 4))
    with pytest.raises(DataError, match="or the contrast is the same examples"):
        trace(chain_of(case, solved(case)), query, **EXACT)


def test_messages_name_the_contrast():
    stage = hf.stage("causal", tiny.model("GPT2LMHeadModel"), tiny.rows(), tokenizer=tiny.tokenizer(marks=False))
    with pytest.raises(DataError, match=r"the query's contrast: example 1 has no column 'text'"):
        trace(Chain(stage), hf.query(tiny.rows(), contrast=[{"text": "a cat"}, {"other": "a dog"}], stage=stage))
    with pytest.raises(DataError, match=r"the query's contrast: the data set is empty"):
        hf.query(tiny.rows(), contrast=[], stage=stage)
