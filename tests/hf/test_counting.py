"""How much an example counts in its stage's mean: by tokens, as trainers weigh them, and by columns of weights."""

import re
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import nn

from stagetrace import Chain, Direct, Identity, Recording, Stage, Unrolled, hf, trace
from stagetrace.errors import StagetraceError
from stagetrace.objectives import Classification, Weights
from tests.hf import tiny

LABELLED = [{"input_ids": [2, 7, 8, 3, 9][: 3 + i % 3], "labels": [-100, 1, 0, -100, 1][: 3 + i % 3]} for i in range(6)]


def of_tokens(kind: str, **settings: Any) -> Stage:
    marks = kind.startswith("Bert")
    data: Any = LABELLED if "Token" in kind else [*tiny.rows(), {"text": ""}]
    return hf.stage("s", tiny.model(kind), data, tokenizer=tiny.tokenizer(marks=marks), **settings)


def losses_of(stage: Stage) -> tuple[Any, Any]:
    (batch,) = stage.examples.read([range(len(stage.examples))])
    with torch.no_grad():
        return stage.loss.losses(stage.loss.outputs(stage.evaluated, batch.content), batch.content), batch.content


@pytest.mark.parametrize(
    "kind", ["GPT2LMHeadModel", "LlamaForCausalLM", "BertForMaskedLM", "BertForTokenClassification"]
)
def test_the_mean_is_what_transformers_computes_of_all_rows_in_one_step(kind: str):
    stage = of_tokens(kind)
    losses, batch = losses_of(stage)
    shifted = batch["labels"][:, 1:] if "LM" in kind and "Masked" not in kind else batch["labels"]
    with torch.no_grad():
        named = {"num_items_in_batch": (shifted != -100).sum()} if kind != "BertForTokenClassification" else {}
        theirs = stage.model(**batch, **named).loss
    torch.testing.assert_close(losses.mean(), theirs, rtol=1e-5, atol=1e-6)
    mean, _ = losses_of(of_tokens(kind, reduction="mean"))
    assert not torch.allclose(mean.mean(), theirs, rtol=1e-3)
    (said,) = stage.data.remarks
    assert "every token weighs the same" in said
    assert "reduction='mean'" in said


def test_words_for_the_same_loss():
    told = [repr(of_tokens("GPT2LMHeadModel", **given).objective) for given in ({}, {"reduction": "tokens"})]
    assert told[0] == told[1]
    alike = [{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9, 7]}]
    for reduction, repr_ in (("auto", "mean"), ("mean", "mean"), ("sum", "sum")):
        stage = hf.stage("s", tiny.model("GPT2LMHeadModel"), alike, reduction=reduction)  # pyright: ignore
        assert repr(stage.objective) == f"NextToken(reduction='{repr_}')"
    with pytest.raises(
        StagetraceError, match="reduction='tokens' is for losses of tokens, and a classification has one"
    ):
        hf.stage(
            "s",
            tiny.model("BertForSequenceClassification"),
            tiny.rows(2),
            tokenizer=tiny.tokenizer(),
            reduction="tokens",
        )


def test_of_recorded_steps_the_loss_is_the_sum_and_a_replay_agrees(tmp_path: Path):
    model, rows = tiny.model("GPT2LMHeadModel"), [{"input_ids": [5, 6, 7, 8]}, {"input_ids": [9, 10]}]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    padded = hf.stage("s", model, rows).collate([{**row, "labels": row["input_ids"]} for row in rows])  # pyright: ignore
    padded["attention_mask"] = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with Recording(tmp_path, model, optimizer) as recording:
        for _ in range(2):
            with recording.batch([0, 1], padded):
                optimizer.zero_grad()
                model(**padded).loss.backward()
            optimizer.step()
    stage = hf.stage("s", model, rows, link=Unrolled(recording=tmp_path))
    assert repr(stage.objective) == "NextToken(reduction='sum')"
    assert trace(Chain(stage), hf.query(rows, stage=stage))["s"].values.shape == (2,)


def test_a_query_is_the_mean_over_its_own_tokens():
    stage = of_tokens("GPT2LMHeadModel")
    query = hf.query("the cat sat", stage=stage)
    assert repr(query.objective) == "NextToken(reduction='mean')"
    summed = of_tokens("BertForMaskedLM", reduction="sum")  # as a recorded training has it by default
    assert repr(hf.query("the cat sat", stage=summed).objective) == "MaskedToken(reduction='mean')"


def classifier(rows: Any, weights: Any) -> Stage:
    return hf.stage(
        "s", tiny.model("BertForSequenceClassification"), rows, tokenizer=tiny.tokenizer(), text="text", weights=weights
    )


@pytest.mark.parametrize("pack", [list, datasets.Dataset.from_list], ids=["list", "datasets"])
def test_weights_are_read_from_columns(pack: Any):
    rows = [{**row, "weight": i, "domain": "ab"[i % 2]} for i, row in enumerate(tiny.rows(2))]
    given = classifier(pack(rows), "weight").example_weights
    torch.testing.assert_close(given, torch.arange(8).double() / 3.5)
    by_source = classifier(pack(rows), Weights({"a": 1, "b": 3}, sources="domain"))
    torch.testing.assert_close(by_source.example_weights, torch.tensor([0.5, 1.5] * 4).double())
    assert any("column 'weight' is not used" in said for said in classifier(pack(rows), None).data.notices)
    assert not by_source.data.notices

    for weights, said in (
        ("wieght", "weights are read from column 'wieght', but there is none; the columns are"),
        (Weights({"a": 1}, sources="domain"), "example 1 is of the source 'b', which has no weight"),
        ("domain", "weights='domain' names a column that holds 'a' for example 0, and a weight is a number"),
        ([1.0], "one number for each of the 8 examples"),
    ):
        with pytest.raises(StagetraceError, match=re.escape(said)):
            classifier(pack(rows), weights)
    with pytest.raises(StagetraceError, match="example 3 has no 'weight'"):
        classifier([*rows[:3], tiny.rows(2)[3], *rows[4:]], "weight")


def test_a_text_is_found_beside_the_column_of_sources():
    rows = [{**row, "domain": "ab"[i % 2]} for i, row in enumerate(tiny.rows(2))]
    stage = hf.stage(
        "s",
        tiny.model("BertForSequenceClassification"),
        rows,
        tokenizer=tiny.tokenizer(),
        weights=Weights({"a": 1, "b": 3}, sources="domain"),
    )
    assert stage.data.reader.columns.texts == ("text",)


def test_weights_of_classes_are_those_of_cross_entropy():
    stage = classifier(tiny.rows(2), Weights({0: 1.0, 1: 5.0}, sources="label"))
    assert stage.objective == Classification()
    losses, batch = losses_of(stage)
    with torch.no_grad():
        logits = stage.evaluated(**{k: v for k, v in batch.items() if k != "labels"}).logits
    expected = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0]))(logits, batch["labels"])
    torch.testing.assert_close((losses.double() * stage.example_weights).mean().float(), expected)


def test_an_example_that_counts_twice_is_two_copies_in_the_mean_number_of_tokens():
    weights, rows = [1, 2, 0, 1, 1, 3, 1, 1], tiny.rows()
    model, tokenizer = tiny.model("GPT2LMHeadModel").double(), tiny.tokenizer(marks=False)
    copies = [index for index, count in enumerate(weights) for _ in range(count)]
    weighted = hf.stage("s", model, rows, tokenizer=tokenizer, weights=weights)
    copied = hf.stage("s", model, [rows[index] for index in copies], tokenizer=tokenizer)
    effects = [
        trace(Chain(stage), hf.query("the cat sat", stage=stage), curvature=Identity(), solver=Direct())["s"]
        for stage in (weighted, copied)
    ]
    together = torch.zeros(len(rows), dtype=torch.float64).index_add(0, torch.tensor(copies), effects[1].removal_effect)
    torch.testing.assert_close(effects[0].removal_effect, together, rtol=1e-10, atol=0)
