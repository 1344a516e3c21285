"""An example's loss is transformers' own loss of it alone, whatever it is batched with."""

from typing import Any

import pytest
import torch
from torch import Tensor

from stagetrace import Stage, hf
from tests.hf import tiny

FLOATS = [{"text": t, "label": 0.5 * i - 1} for i, t in enumerate(tiny.TEXTS)]
SEVERAL = [{"text": t, "label": [float(i % 2), 1.0, float(i % 3 == 0)]} for i, t in enumerate(tiny.TEXTS)]
PAIRS = [{"premise": t, "hypothesis": u, "label": i % 2} for i, (t, u) in enumerate(zip(tiny.TEXTS, tiny.TEXTS[::-1]))]  # noqa: B905
WORDS = [{"tokens": t.split(), "tags": [i % 3 for i in range(len(t.split()))]} for t in tiny.TEXTS]
SHORT = tuple(text for text in tiny.TEXTS if len(text.split()) > 1)  # a next token to predict
MULTI = "multi_label_classification"

CASES: dict[str, tuple[str, dict[str, Any], list[dict[str, Any]]]] = {
    "bert, classes": ("BertForSequenceClassification", {"num_labels": 3}, tiny.rows(3)),
    "bert, pairs": ("BertForSequenceClassification", {"num_labels": 2}, PAIRS),
    "bert, one number": ("BertForSequenceClassification", {"num_labels": 1}, FLOATS),
    "bert, several labels": ("BertForSequenceClassification", {"num_labels": 3, "problem_type": MULTI}, SEVERAL),
    "bert, numbers": ("BertForSequenceClassification", {"num_labels": 3, "problem_type": "regression"}, SEVERAL),
    "bert, words": ("BertForTokenClassification", {"num_labels": 3}, WORDS),
    "bert, masks": ("BertForMaskedLM", {}, tiny.rows()),
    "gpt2, classes": ("GPT2ForSequenceClassification", {"num_labels": 3}, tiny.rows(3)),
    "llama, classes": ("LlamaForSequenceClassification", {"num_labels": 3}, tiny.rows(3)),
    "gpt2, next tokens": ("GPT2LMHeadModel", {}, tiny.rows(texts=SHORT)),
    "gpt2 without padding, next tokens": ("GPT2LMHeadModel", {"pad_token_id": None}, tiny.rows(texts=SHORT)),
    "llama, next tokens": ("LlamaForCausalLM", {}, tiny.rows(texts=SHORT)),
}


def stage_of(case: str, **settings: Any) -> Stage:
    name, changes, data = CASES[case]
    bert = name.startswith("Bert")
    tokenizer = tiny.tokenizer(marks=bert, pad=changes.get("pad_token_id", 0) is not None)
    given: dict[str, Any] = {"reduction": "mean", **settings}
    return hf.stage("s", tiny.model(name, **changes), data, tokenizer=tokenizer, **given)


def losses_of(stage: Stage, plan: list[list[int]]) -> Tensor:
    batches = stage.examples.read(plan)
    with torch.no_grad():
        return torch.cat([stage.loss.losses(stage.loss.outputs(stage.model, b.content), b.content) for b in batches])


@pytest.mark.parametrize("case", CASES)
def test_the_loss_of_an_example_is_transformers_own(case: str):
    stage = stage_of(case)
    everything = list(range(len(stage.data)))
    theirs: list[float] = []
    for index in everything:
        row = {key: torch.tensor([value]) for key, value in stage.data[index].items()}
        with torch.no_grad():
            theirs.append(float(stage.model(**row).loss))
    assert len({round(loss, 6) for loss in theirs}) == len(theirs)
    expected = torch.tensor(theirs)
    for plan in ([everything], [everything[::-1]], [[i] for i in everything], [everything[:3], everything[3:]]):
        order = torch.tensor([index for batch in plan for index in batch])
        torch.testing.assert_close(losses_of(stage, plan), expected[order], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses_of(stage, [everything]).mean(), expected.mean(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["bert, masks", "gpt2, next tokens", "llama, next tokens", "bert, words"])
def test_the_sum_is_over_the_labelled_tokens(case: str):
    mean, total = stage_of(case), stage_of(case, reduction="sum")
    shift = 1 if "next" in case else 0
    counts = [sum(label != -100 for label in row["labels"][shift:]) for row in mean.data]
    assert max(counts) > 1
    plan = [list(range(len(counts)))]
    torch.testing.assert_close(losses_of(total, plan), losses_of(mean, plan) * torch.tensor(counts))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_that_the_data_bring_is_not_predicted(side: str):
    """Llama's positions are relative: padding on either side leaves the losses what they are without."""
    model, tokenizer = tiny.model("LlamaForCausalLM"), tiny.tokenizer(marks=False)
    bare = hf.stage("s", model, [dict(tokenizer(t)) for t in SHORT])
    padded = tokenizer(list(SHORT), padding="max_length", max_length=12, padding_side=side)
    data = [{key: values[i] for key, values in padded.items()} for i in range(len(SHORT))]
    stage = hf.stage("s", model, data)
    assert {len(row["input_ids"]) for row in stage.data} == {12}
    plan = [list(range(len(SHORT)))]
    torch.testing.assert_close(losses_of(stage, plan), losses_of(bare, plan), rtol=1e-5, atol=1e-5)


def test_words_are_labelled_on_their_first_token():
    stage = stage_of("bert, words")
    row = stage.data[tiny.TEXTS.index("a big redish mat on the cat ran")]  # redish is two tokens
    assert row["labels"] == [-100, 0, 1, 2, -100, 0, 1, 2, 0, 1, -100]


def test_labels_as_given_are_ignored_where_they_say_so():
    data = [{"input_ids": [2, 7, 8, 9], "labels": [-100, 7, -100, 9]}, {"input_ids": [2, 7], "labels": [-100, 7]}]
    stage = hf.stage("s", tiny.model("BertForMaskedLM"), data, reduction="mean")
    logits = stage.model(input_ids=torch.tensor([data[0]["input_ids"]])).logits[0].log_softmax(dim=-1)
    expected = -(logits[1, 7] + logits[3, 9]) / 2
    torch.testing.assert_close(losses_of(stage, [[0, 1]])[0], expected.detach())


def test_a_query_is_read_like_its_stage():
    stage = hf.stage(
        "s", tiny.model("BertForSequenceClassification", num_labels=3), tiny.rows(3), tokenizer=tiny.tokenizer()
    )
    query = hf.query(tiny.rows(3)[::-1], stage=stage, reduction="none")
    assert [query.data[i] for i in range(8)] == [stage.data[7 - i] for i in range(8)]
    assert (query.rows, query.collate) == (8, stage.collate)
