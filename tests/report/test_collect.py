"""What is kept of a run's examples: the right ones, the query with its true losses, and no more reading than that."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from stagetrace import Chain, GaussNewton, Query, Scores, Stage, Trace, trace
from stagetrace.errors import DescriptionError
from stagetrace.objectives import Classification, Regression
from stagetrace.report import sound
from stagetrace.report.collect import QUERIES, collect, shown_examples, shown_queries
from tests import jobs


class Watched(torch.utils.data.Dataset):
    """A data set that remembers which of its items were read."""

    def __init__(self, data: Any) -> None:
        self.data, self.read = data, set[int]()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        self.read.add(index)
        return self.data[index]


@pytest.fixture(scope="module")
def job() -> tuple[Chain, Query, Trace]:
    chain, query, _ = jobs.frozen()
    return chain, query, trace(chain, query, curvature=GaussNewton())


def test_losses_and_predictions_are_those_of_the_plain_model(job: tuple[Chain, Query, Trace]):
    chain, query, result = job
    found = collect(result, chain, query)
    asked = [item for item in found.items if item.stage is None]
    x, y = query.data[:]
    with torch.no_grad():
        logits = chain.last.stage.model(x)
    losses, shares = F.cross_entropy(logits, y, reduction="none"), logits.softmax(dim=1)
    assert [item.index for item in asked] == list(range(len(y)))
    for item, loss, share, label in zip(asked, losses, shares, y, strict=True):
        assert item.loss == pytest.approx(float(loss))
        assert item.prediction == f"{int(share.argmax())} ({float(share.max()):.0%})"
        assert item.label == str(int(label))
    assert found.facts["query_loss"] == pytest.approx(float(losses.mean()))
    summed = collect(result, chain, Query(query.data, reduction="sum"))
    assert summed.facts["query_loss"] == pytest.approx(float(losses.sum()))


def test_a_regression_is_shown_its_outputs():
    first, last = jobs.frozen()[0].stages
    data = [(torch.ones(4).double(), torch.tensor([0.5, 0.0, 1.0]).double())]
    stages = (
        Stage("pretrain", model=first.model, objective=Regression(), data=data, weight_decay=1.0),
        Stage("finetune", model=last.model, objective=Regression(), data=data, weight_decay=1.0, link=last.link),
    )
    scores = {name: Scores(name, torch.ones(1).double()) for name in ("pretrain", "finetune")}
    found = collect(Trace(scores), Chain(*stages), Query(data)).items[0]
    with torch.no_grad():
        outputs = last.model(data[0][0][None])[0]
    assert found.prediction == ", ".join(f"{float(value):.4g}" for value in outputs)
    assert found.label == ""


def test_the_ends_of_each_ranking_are_kept():
    generator = torch.Generator().manual_seed(0)
    scores = Scores("s", torch.randn(3, 1_000, generator=generator, dtype=torch.float64))
    found = set(shown_examples(scores, [0, 2]))
    order = scores.values.mean(dim=0).argsort().tolist()
    wanted = {*order[:100], *order[-100:]}
    for query in (0, 2):
        order = scores.values[query].argsort().tolist()
        wanted |= {*order[:10], *order[-10:]}
    assert found == wanted


def test_of_many_queries_those_of_the_largest_loss_are_kept():
    losses = torch.randn(QUERIES + 50, generator=torch.Generator().manual_seed(0)).double()
    assert shown_queries(losses[:QUERIES]) == list(range(QUERIES))
    found = shown_queries(losses)
    assert found == sorted(losses.argsort()[50:].tolist())


def test_the_training_data_is_not_scanned():
    chain, query, _ = jobs.frozen()
    n = 1_000
    data = Watched(jobs.examples(n, 0))
    first, last = chain.stages
    long = Stage("pretrain", model=first.model, objective=first.objective, data=data, weight_decay=0.01)
    values = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = Chain(long, last)
    data.read.clear()
    collect(Trace({"pretrain": Scores("pretrain", values)}), made, query)
    order = values.argsort().tolist()
    assert data.read <= {0, *order[:100], *order[-100:]}


def test_another_chain_or_query_is_refused(job: tuple[Chain, Query, Trace]):
    chain, query, result = job
    other = Trace({"pretrain": Scores("pretrain", torch.ones(5).double())})
    with pytest.raises(DescriptionError, match="has 5 scores of stage 'pretrain', its data set 37 examples"):
        collect(other, chain, query)
    other = Trace({"distil": Scores("distil", torch.ones(5).double())})
    with pytest.raises(DescriptionError, match="scores of stage 'distil', the chain has 'pretrain', 'finetune'"):
        collect(other, chain, query)
    other = Trace({"pretrain": Scores("pretrain", torch.ones(2, 37).double())})
    with pytest.raises(DescriptionError, match="scores of 2 queries, the query 6 examples"):
        collect(other, chain, query)
    assert set(result) == {"pretrain", "finetune"}


def test_the_sounds_of_the_rows_are_kept_within_their_limit(monkeypatch: pytest.MonkeyPatch):
    class Features(list[Any]):
        rows = [{"audio": {"array": torch.ones(16_000), "sampling_rate": 16_000}, "label": 0}] * 4

    stage = Stage(
        "fit", model=torch.nn.Linear(2, 2), objective=Classification(), data=Features([(torch.ones(2), 1)] * 4)
    )
    chain, query = Chain(stage), Query(stage.data)
    monkeypatch.setattr(sound, "LARGEST", 40_000)
    found = collect(Trace({"fit": Scores("fit", torch.arange(4.0).double() - 1.5)}), chain, query)
    assert {item.kind for item in found.items} == {"audio"}
    assert 39_000 < sum(len(each.wav) for item in found.items for each in item.sounds) <= 40_000
